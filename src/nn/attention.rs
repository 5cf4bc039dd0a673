//! Grouped-query self-attention with rotary positions.

use super::{Arenas, Linear, Pass, Saved, Scratch, Tables};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::attention::{self as kernel, Operands, Shape};
use crate::kernels::rope::{self, Turn};
use crate::kernels::{Mat, kv_write};

/// The attention half of a block.
pub struct Attention {
    /// Queries, keys and values, side by side.
    pub qkv: Linear,
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

    /// The columns of `qkv` `(T, H + 2 G, head_dim)`.
    fn operands<'a>(&self, qkv: &'a Tensor) -> Operands<'a> {
        let q = Mat::new(qkv, (self.heads + 2 * self.kv_heads) * self.head_dim);
        let k = q.from(self.heads * self.head_dim);
        Operands { q, k, v: k.from(self.kv_heads * self.head_dim) }
    }

    /// Turns queries and keys, which are neighbours.
    fn turn(&self, rec: &mut Recorder, way: Turn, tables: &Tables, qkv: &Tensor) -> Result<()> {
        let shape = (tables.count, self.heads + self.kv_heads, self.head_dim);
        rope::turn(rec, way, tables.tokens, tables.rope, self.operands(qkv).q, shape)
    }

    /// Records out `(T, D)` = residual + attention of x `(T, D)`; with a cache, keys and values go there and are read from there.
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
        residual: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let count = tables.count;
        self.qkv.forward(rec, pass, scratch, x, &saved.qkv, None, count)?;
        self.turn(rec, Turn::Forward, tables, &saved.qkv)?;
        let own = self.operands(&saved.qkv);
        let operands = match cache {
            None => own,
            Some(cache) => {
                let width = self.kv_heads * self.head_dim;
                kv_write::forward(rec, tables.tokens, [own.k, own.v], [&cache.k, &cache.v], count, width)?;
                Operands { q: own.q, k: Mat::new(&cache.k, width), v: Mat::new(&cache.v, width) }
            }
        };
        let shape = Shape { dense: !pass.decoding, ..self.shape(tables) };
        kernel::forward(rec, operands, tables.ranges, &saved.o, &saved.stats, shape)?;
        self.o.forward(rec, pass, scratch, &saved.o, out, Some(residual), count)
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
        let Scratch { dqkv, d_o, .. } = scratch;
        self.o.backward(rec, pass, gradients, scratch, &saved.o, dout, Some(d_o), count)?;
        let forward = kernel::Saved {
            operands: self.operands(&saved.qkv),
            o: &saved.o,
            stats: &saved.stats,
            ranges: tables.ranges,
            tokens: tables.tokens,
        };
        kernel::backward(rec, forward, d_o, dqkv, dqkv, self.shape(tables))?;
        self.turn(rec, Turn::Backward, tables, dqkv)?;
        self.qkv.backward(rec, pass, gradients, scratch, x, dqkv, dx, count)
    }
}
