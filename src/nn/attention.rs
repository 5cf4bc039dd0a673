//! Grouped-query self-attention with rotary positions.

use super::{Arenas, Linear, Pass, Saved, Scratch, Tables};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::attention::{self as kernel, Shape};
use crate::kernels::kv_write;
use crate::kernels::rope::{self, Turn};

/// The attention half of a block.
pub struct Attention {
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    /// Output.
    pub o: Linear,
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// A layer's keys and values in a sampler's cache, `(slots, G, head_dim)` each.
#[derive(Clone)]
pub struct KvCache {
    /// Keys, turned.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl Attention {
    fn shape(&self, tables: &Tables) -> Shape {
        Shape {
            queries: tables.count,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            mean_keys: tables.mean_keys,
            dense: true,
        }
    }

    fn turn(&self, rec: &mut Recorder, way: Turn, tables: &Tables, x: &Tensor, heads: usize) -> Result<()> {
        rope::turn(rec, way, tables.tokens, tables.rope, x, (tables.count, heads, self.head_dim))
    }

    /// Records out `(T, D)` = attention of x `(T, D)`; with a cache, keys and values go there and are read from there.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        tables: &Tables,
        saved: &Saved,
        scratch: &Scratch,
        cache: Option<&KvCache>,
        x: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let count = tables.count;
        self.q.forward(rec, pass, scratch, x, &saved.q, count)?;
        self.k.forward(rec, pass, scratch, x, &saved.k, count)?;
        self.v.forward(rec, pass, scratch, x, &saved.v, count)?;
        self.turn(rec, Turn::Forward, tables, &saved.q, self.heads)?;
        self.turn(rec, Turn::Forward, tables, &saved.k, self.kv_heads)?;
        let (k, v) = match cache {
            None => (&saved.k, &saved.v),
            Some(cache) => {
                let width = self.kv_heads * self.head_dim;
                kv_write::forward(rec, tables.tokens, &saved.k, &cache.k, count, width)?;
                kv_write::forward(rec, tables.tokens, &saved.v, &cache.v, count, width)?;
                (&cache.k, &cache.v)
            }
        };
        let shape = Shape { dense: cache.is_none(), ..self.shape(tables) };
        kernel::forward(rec, &saved.q, k, v, tables.ranges, &saved.o, &saved.stats, shape)?;
        self.o.forward(rec, pass, scratch, &saved.o, out, count)
    }

    /// Records the gradients: dx, where wanted, `=`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        tables: &Tables,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        dout: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let count = tables.count;
        let Scratch { dq, dk, dv, d_o, .. } = scratch;
        self.o.backward(rec, pass, gradients, scratch, &saved.o, dout, Some(d_o), count, false)?;
        let forward = kernel::Saved {
            q: &saved.q,
            k: &saved.k,
            v: &saved.v,
            o: &saved.o,
            stats: &saved.stats,
            ranges: tables.ranges,
            tokens: tables.tokens,
        };
        kernel::backward(rec, forward, d_o, dq, dk, dv, self.shape(tables))?;
        self.turn(rec, Turn::Backward, tables, dq, self.heads)?;
        self.turn(rec, Turn::Backward, tables, dk, self.kv_heads)?;
        self.q.backward(rec, pass, gradients, scratch, x, dq, dx, count, false)?;
        self.k.backward(rec, pass, gradients, scratch, x, dk, dx, count, true)?;
        self.v.backward(rec, pass, gradients, scratch, x, dv, dx, count, true)
    }
}
