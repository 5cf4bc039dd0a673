//! Grouped-query self-attention, with rotary positions in the layers that have them.

use super::{Backward, Forward, Input, Linear, Param, Saved, Scratch, Tables};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::attention::{self as kernel, Operands, Shape};
use crate::kernels::rms_norm::Constants;
use crate::kernels::rope::{self, Turn};
use crate::kernels::{Heads, Mat, Out, head_norm, kv_write};

/// The attention half of a block.
#[derive(Clone)]
pub struct Attention {
    /// Queries, keys and values, concatenated; if interleaved, concatenated per head.
    pub qkv: Linear,
    /// The output projection.
    pub o: Linear,
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether each head's query, key and value are contiguous, followed by the next head's (GPT-NeoX). Then
    /// H = G.
    pub interleaved: bool,
    /// The norms of queries and keys.
    pub norms: Option<HeadNorms>,
    /// The index of the kind of rotary positions in [`Tables::ropes`], and how many elements of a head are
    /// rotated; `None` in a layer without positions.
    pub rope: Option<(usize, usize)>,
    /// Factor on the scores.
    pub scale: f32,
    /// Sliding window: the number of its last keys that a query sees; `None` for all keys.
    pub window: Option<usize>,
    /// The soft cap on scores.
    pub cap: Option<f32>,
}

/// RMSNorms of each head of the queries and keys, before their rotation.
#[derive(Clone)]
pub struct HeadNorms {
    /// `(head_dim)`
    pub q: Param,
    /// `(head_dim)`
    pub k: Param,
    /// Their constants.
    pub constants: Constants,
}

/// A layer's keys and values in a sampler's cache, `(slots, G, head_dim)` each.
#[derive(Clone)]
pub struct KvCache {
    /// Keys, after their rotation.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl Attention {
    fn shape(&self, tables: &Tables) -> Shape {
        Shape {
            queries: tables.count,
            keys: tables.count,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            window: self.window,
            cap: self.cap,
            mean_keys: tables.mean_keys,
            dense: true,
        }
    }

    /// The queries, keys and values in the columns of `qkv` `(T, H + 2 G, head_dim)`.
    fn operands<'a>(&self, qkv: &'a Tensor) -> Operands<'a> {
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let apart = if self.interleaved { 3 * self.head_dim } else { self.head_dim };
        let q = Heads::new(qkv, width, apart);
        let [queries, keys] = if self.interleaved { [1, 1] } else { [self.heads, self.kv_heads] }
            .map(|heads| heads * self.head_dim);
        Operands { q, k: q.from(queries), v: q.from(queries + keys) }
    }

    /// Rotates queries and keys. Unless they are interleaved, they are adjacent, and one dispatch rotates
    /// both.
    fn turn(&self, rec: &mut Recorder, way: Turn, tables: &Tables, qkv: &Tensor) -> Result<()> {
        let Some((kind, dim)) = self.rope else { return Ok(()) };
        let (operands, table) = (self.operands(qkv), &tables.ropes[kind]);
        if self.interleaved {
            rope::turn(rec, way, tables.tokens, table, operands.q, (tables.count, self.heads, dim))?;
            return rope::turn(
                rec,
                way,
                tables.tokens,
                table,
                operands.k,
                (tables.count, self.kv_heads, dim),
            );
        }
        let heads = self.heads + self.kv_heads;
        rope::turn(rec, way, tables.tokens, table, operands.q, (tables.count, heads, dim))
    }

    /// Queries and keys as the head norms take them, and their sizes.
    fn queries_and_keys<'a>(&self, tables: &Tables, qkv: &'a Tensor) -> (Mat<'a>, head_norm::Shape) {
        let &Self { heads, kv_heads, head_dim, .. } = self;
        let shape = head_norm::Shape { tokens: tables.count, heads, kv_heads, head_dim };
        (Mat::new(qkv, (heads + 2 * kv_heads) * head_dim), shape)
    }

    /// Records out `(T, D)` = attention of x `(T, D)`. With a cache, keys and values are written to it and
    /// read from it.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        saved: &Saved,
        cache: Option<&KvCache>,
        x: &Tensor,
        out: Out,
    ) -> Result<()> {
        let Forward { pass, tables, .. } = forward;
        self.qkv.forward(rec, forward, Input { x, low: &saved.low.qkv }, Out::to(&saved.qkv))?;
        if let Some(norms) = &self.norms {
            let [q, k] = [&norms.q, &norms.k].map(|norm| norm.in_arenas(pass.values));
            let (x, shape) = self.queries_and_keys(&tables, &saved.qkv);
            let kept = (&saved.raw, &saved.raw_rstd);
            head_norm::forward(rec, [&q, &k], x, kept, shape, norms.constants)?;
        }
        self.turn(rec, Turn::Forward, &tables, &saved.qkv)?;
        let own = self.operands(&saved.qkv);
        let operands = match cache {
            None => own,
            Some(cache) => {
                let width = self.kv_heads * self.head_dim;
                kv_write::forward(
                    rec,
                    tables.tokens,
                    [own.k, own.v],
                    [&cache.k, &cache.v],
                    tables.count,
                    (self.kv_heads, self.head_dim),
                )?;
                let of = |data| Heads::new(data, width, self.head_dim);
                Operands { q: own.q, k: of(&cache.k), v: of(&cache.v) }
            }
        };
        let own = self.shape(&tables);
        let slots = |cache: &KvCache| cache.k.len() / (self.kv_heads * self.head_dim);
        let shape = Shape { dense: !pass.sparse, keys: cache.map_or(own.keys, slots), ..own };
        kernel::forward(rec, operands, tables.ranges, &saved.o, &saved.stats, shape)?;
        self.o.forward(rec, forward, Input { x: &saved.o, low: &saved.low.o }, out)
    }

    /// Records the first part of the backward pass: dx `(T, D)`, if it is given, = the gradient of x, and all
    /// gradients of parameters but those of [`Attention::backward_weights`], which must follow before another
    /// layer's backward pass.
    pub fn backward_input(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        saved: &Saved,
        dout: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let Backward { forward: Forward { pass, tables, scratch, .. }, gradients } = backward;
        let Scratch { dqkv, d_o, .. } = scratch;
        self.o.backward_input(rec, backward, &saved.low.o, dout, Some(d_o))?;
        self.o.backward_weights(rec, backward, &saved.o, dout)?;
        let forward = kernel::Saved {
            operands: self.operands(&saved.qkv),
            o: &saved.o,
            stats: &saved.stats,
            ranges: tables.ranges,
            tokens: tables.tokens,
        };
        kernel::backward(rec, forward, d_o, dqkv, dqkv, self.shape(&tables))?;
        self.turn(rec, Turn::Backward, &tables, dqkv)?;
        if let Some(norms) = &self.norms {
            let [q, k] = [&norms.q, &norms.k].map(|norm| norm.in_arenas(pass.values));
            let [dq, dk] = [&norms.q, &norms.k].map(|norm| norm.gradient(gradients));
            let (dx, shape) = self.queries_and_keys(&tables, dqkv);
            let kept = (&saved.raw, &saved.raw_rstd);
            head_norm::backward(rec, [&q, &k], kept, dx, [dq.as_ref(), dk.as_ref()], shape, norms.constants)?;
        }
        self.qkv.backward_input(rec, backward, &saved.low.qkv, dqkv, dx)
    }

    /// Records the second part: [`Linear::backward_weights`] of the projection to queries, keys and values,
    /// whose input is x `(T, D)`.
    pub fn backward_weights(&self, rec: &mut Recorder, backward: Backward, x: &Tensor) -> Result<()> {
        self.qkv.backward_weights(rec, backward, x, &backward.forward.scratch.dqkv)
    }
}
