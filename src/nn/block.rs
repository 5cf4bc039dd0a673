//! One decoder block: x + attention(norm(x)), then + mlp(norm(·)).

use super::{Arenas, Attention, KvCache, Mlp, Param, Pass, Tables};
use crate::Result;
use crate::gpu::{DType, Gpu, Purpose, Recorder, Tensor};
use crate::kernels::rms_norm::{self, Shape};

/// A pre-norm decoder block.
pub struct Block {
    /// `(D)`, before attention.
    pub attention_norm: Param,
    /// Attention.
    pub attention: Attention,
    /// `(D)`, before the MLP.
    pub mlp_norm: Param,
    /// MLP.
    pub mlp: Mlp,
    /// D.
    pub width: usize,
    /// The norms' epsilon.
    pub eps: f32,
}

/// Widths that size a block's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Tokens at most, T.
    pub tokens: usize,
    /// D.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// H × head_dim.
    pub q_width: usize,
    /// G × head_dim.
    pub kv_width: usize,
    /// Inner width of the MLP, F.
    pub inner: usize,
    /// The most ranks of adapters on one input; 0 without adapters.
    pub ranks: usize,
    /// Whether adapters have dropout.
    pub dropout: bool,
}

/// What one block's forward pass keeps for its backward pass, apart from its input.
#[derive(Clone)]
pub struct Saved {
    /// `(T)`
    pub attention_rstd: Tensor,
    /// `(T, H + 2 G, head_dim)`: queries and keys, turned, and values.
    pub qkv: Tensor,
    /// `(T, H, head_dim)`
    pub o: Tensor,
    /// `(2, T, H)`: lse, delta.
    pub stats: Tensor,
    /// `(T, D)`: the residual stream after attention.
    pub middle: Tensor,
    /// `(T)`
    pub mlp_rstd: Tensor,
    /// `(T, 2, F)`
    pub gate_up: Tensor,
}

impl Saved {
    /// Allocates.
    pub fn new(gpu: &Gpu, s: &Sizes) -> Result<Self> {
        let t = s.tokens;
        let make = |label, count| Tensor::new(gpu, Purpose::Activations, label, count, DType::F32);
        Ok(Self {
            attention_rstd: make("attention_rstd", t)?,
            qkv: make("qkv", t * (s.q_width + 2 * s.kv_width))?,
            o: make("o", t * s.q_width)?,
            stats: make("attention stats", 2 * t * s.heads)?,
            middle: make("middle", t * s.width)?,
            mlp_rstd: make("mlp_rstd", t)?,
            gate_up: make("gate_up", t * 2 * s.inner)?,
        })
    }
}

/// Buffers that all blocks use in turn. Those of the backward pass are empty in a forward-only set.
pub struct Scratch {
    /// `(T, D)`: a norm's output.
    pub normed: Tensor,
    /// `(T, F)`
    pub act: Tensor,
    /// `(T, ranks)`: adapters' inner activations.
    pub low: Tensor,
    /// `(T, max(D, F))`: an adapter's input after dropout.
    pub dropped: Tensor,
    /// `(T, ranks)`
    pub dlow: Tensor,
    /// `(T, D)`: the gradient of a norm's output.
    pub dnormed: Tensor,
    /// `(T, H + 2 G, head_dim)`
    pub dqkv: Tensor,
    /// `(T, H, head_dim)`
    pub d_o: Tensor,
    /// `(T, F)`
    pub dact: Tensor,
    /// `(T, 2, F)`
    pub dgate_up: Tensor,
}

impl Scratch {
    /// Allocates; without `backward` the gradient buffers are empty.
    pub fn new(gpu: &Gpu, s: &Sizes, backward: bool) -> Result<Self> {
        let t = s.tokens;
        let make = |label, width: usize| Tensor::new(gpu, Purpose::Activations, label, t * width, DType::F32);
        let back = |label, width: usize| make(label, if backward { width } else { 0 });
        Ok(Self {
            normed: make("normed", s.width)?,
            act: make("act", s.inner)?,
            low: make("low", s.ranks)?,
            dropped: make("dropped", if s.dropout { s.width.max(s.inner).max(s.q_width) } else { 0 })?,
            dlow: back("dlow", s.ranks)?,
            dnormed: back("dnormed", s.width)?,
            dqkv: back("dqkv", s.q_width + 2 * s.kv_width)?,
            d_o: back("d_o", s.q_width)?,
            dact: back("dact", s.inner)?,
            dgate_up: back("dgate_up", 2 * s.inner)?,
        })
    }
}

impl Block {
    fn norm_shape(&self, tables: &Tables) -> Shape {
        Shape { rows: tables.count, width: self.width }
    }

    /// Records out `(T, D)` = the block of x `(T, D)`. x and out must be different buffers.
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
        let shape = self.norm_shape(tables);
        let Scratch { normed, .. } = scratch;
        let weight = self.attention_norm.in_arenas(pass.values);
        rms_norm::forward(rec, x, &weight, normed, &saved.attention_rstd, shape, self.eps)?;
        self.attention.forward(rec, pass, tables, saved, scratch, cache, normed, x, &saved.middle)?;
        let weight = self.mlp_norm.in_arenas(pass.values);
        rms_norm::forward(rec, &saved.middle, &weight, normed, &saved.mlp_rstd, shape, self.eps)?;
        self.mlp.forward(rec, pass, saved, scratch, normed, &saved.middle, out, tables.count)
    }

    /// Turns dx `(T, D)`, in place, from the gradient of the block's output into that of its input x.
    /// With `input` false the latter is not needed (nothing below is trained) and dx is left unfinished.
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
        dx: &Tensor,
        input: bool,
    ) -> Result<()> {
        let shape = self.norm_shape(tables);
        let Scratch { normed, dnormed, .. } = scratch;
        let weight = self.mlp_norm.in_arenas(pass.values);
        rms_norm::forward(rec, &saved.middle, &weight, normed, &saved.mlp_rstd, shape, self.eps)?;
        self.mlp.backward(rec, pass, gradients, saved, scratch, normed, dx, dnormed, tables.count)?;
        let norm = rms_norm::Saved { x: &saved.middle, w: &weight, rstd: &saved.mlp_rstd };
        let dw = self.mlp_norm.gradient(gradients);
        rms_norm::backward(rec, norm, dnormed, dx, dw.as_ref(), shape, true)?;

        let weight = self.attention_norm.in_arenas(pass.values);
        rms_norm::forward(rec, x, &weight, normed, &saved.attention_rstd, shape, self.eps)?;
        let dw = self.attention_norm.gradient(gradients);
        let wanted = (input || dw.is_some()).then_some(dnormed);
        self.attention.backward(rec, pass, gradients, tables, saved, scratch, normed, dx, wanted)?;
        if wanted.is_none() {
            return Ok(());
        }
        let norm = rms_norm::Saved { x, w: &weight, rstd: &saved.attention_rstd };
        rms_norm::backward(rec, norm, dnormed, dx, dw.as_ref(), shape, true)
    }
}
