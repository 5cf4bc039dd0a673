//! One decoder block: x + attention(norm(x)), then + mlp(norm(·)), and the variations that families have on
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Arenas, Attention, KvCache, Mlp, Norm, Pass, Tables};
use crate::Result;
use crate::gpu::{DType, Memory, Purpose, Recorder, Tensor};

/// A pre-norm decoder block.
pub struct Block {
    /// Before attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// Of attention's output, before it joins the residual stream (Gemma).
    pub after_attention: Option<Norm>,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// MLP.
    pub mlp: Mlp,
    /// Of the MLP's output, before it joins the residual stream (Gemma).
    pub after_mlp: Option<Norm>,
    /// Whether the MLP reads the block's input, as attention does, not the stream after attention (GPT-NeoX).
    /// Such blocks have no norms of outputs.
    pub parallel: bool,
    /// Its matrices, where they lie in host memory and share tensors with the other blocks'.
    pub streamed: Option<Streamed>,
}

/// Frozen matrices of a block in host memory, brought to the device each time the block is passed.
pub struct Streamed {
    /// The block's number.
    pub index: usize,
    /// The tensors that all blocks use in turn, and what this block has in them.
    pub matrices: Vec<(Tensor, Vec<u8>)>,
    /// The number of the block that is in the tensors.
    pub present: Arc<AtomicUsize>,
}

impl Streamed {
    /// No block's number.
    pub const NONE: usize = usize::MAX;

    /// Submits what is recorded and brings the matrices, unless they are there.
    fn bring(&self, rec: &mut Recorder) {
        if self.present.swap(self.index, Ordering::Relaxed) == self.index {
            return;
        }
        rec.submit();
        for (tensor, bytes) in &self.matrices {
            tensor.write_bytes(rec.gpu(), bytes);
        }
        rec.keep_pace();
    }
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
    /// Width of the MLP's first projection: F, or gated 2 F.
    pub up: usize,
    /// Elements that a norm keeps of a row: 1, a LayerNorm 2.
    pub norm_stats: usize,
    /// Heads that have a norm of their own: H + G or 0.
    pub normed_heads: usize,
    /// Whether attention's and the MLP's outputs are normed.
    pub output_norms: bool,
    /// Whether attention and MLP read the same input.
    pub parallel: bool,
    /// The most ranks of adapters on one input; 0 without adapters.
    pub ranks: usize,
    /// Whether adapters have dropout.
    pub dropout: bool,
}

/// What a backward pass computes once more instead of keeping it (Chen et al., 1604.06174). Norms and the
/// MLP's activation are always among it. The gradients are the same to the bit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Recompute {
    /// No matrix product: fastest
    #[default]
    None,
    /// The MLP's first product
    Mlp,
    /// All of a block but its input: least memory
    Full,
}

/// What one block's forward pass keeps for its backward pass, apart from its input.
#[derive(Clone)]
pub struct Saved {
    /// `(T)`, of a LayerNorm `(2, T)`.
    pub attention_stats: Tensor,
    /// `(T, H + 2 G, head_dim)`: queries and keys, normed and turned, and values.
    pub qkv: Tensor,
    /// `(T, H + G, head_dim)`: queries and keys before their norms; else empty.
    pub raw: Tensor,
    /// `(T, H + G)`
    pub raw_rstd: Tensor,
    /// `(T, H, head_dim)`
    pub o: Tensor,
    /// `(2, T, H)`: lse, delta.
    pub stats: Tensor,
    /// `(T, D)`: attention's output where it is normed; else empty.
    pub attention_out: Tensor,
    /// `(T)`
    pub attention_out_stats: Tensor,
    /// `(T, D)`: the residual stream after attention.
    pub middle: Tensor,
    /// `(T)`, of a LayerNorm `(2, T)`.
    pub mlp_stats: Tensor,
    /// `(T, F)`, gated `(T, 2, F)`: gate, up.
    pub up: Tensor,
    /// `(T, D)`: the MLP's output where it is normed; else empty.
    pub mlp_out: Tensor,
    /// `(T)`
    pub mlp_out_stats: Tensor,
}

impl Saved {
    /// Allocates for each of `blocks`, which share what is not kept.
    pub fn all(memory: &Memory, s: &Sizes, blocks: usize, recompute: Recompute) -> Result<Vec<Self>> {
        let first = Self::new(memory, s, None)?;
        let of = |i| match recompute {
            _ if i == 0 => Ok(first.clone()),
            Recompute::None => Self::new(memory, s, None),
            Recompute::Mlp => Self::new(memory, s, Some(&first)),
            Recompute::Full => Ok(first.clone()),
        };
        (0..blocks).map(of).collect()
    }

    /// Allocates; the MLP's first product is that of `up`, where it is given.
    fn new(memory: &Memory, s: &Sizes, up: Option<&Self>) -> Result<Self> {
        let t = s.tokens;
        let make =
            |label, width: usize| Tensor::new(memory, Purpose::Activations, label, t * width, DType::F32);
        let head_dim = s.q_width / s.heads;
        let out = usize::from(s.output_norms);
        Ok(Self {
            attention_stats: make("attention norm", s.norm_stats)?,
            qkv: make("qkv", s.q_width + 2 * s.kv_width)?,
            raw: make("queries and keys", s.normed_heads * head_dim)?,
            raw_rstd: make("queries' and keys' norm", s.normed_heads)?,
            o: make("o", s.q_width)?,
            stats: make("attention stats", 2 * s.heads)?,
            attention_out: make("attention out", out * s.width)?,
            attention_out_stats: make("attention out norm", out)?,
            middle: make("middle", s.width)?,
            mlp_stats: make("mlp norm", s.norm_stats)?,
            up: up.map_or_else(|| make("up", s.up), |shared| Ok(shared.up.clone()))?,
            mlp_out: make("mlp out", out * s.width)?,
            mlp_out_stats: make("mlp out norm", out)?,
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
    /// `(T, D)`: the gradient of a normed output, or of the second of two norms of one input; else empty.
    pub dbranch: Tensor,
    /// `(T, H + 2 G, head_dim)`
    pub dqkv: Tensor,
    /// `(T, H, head_dim)`
    pub d_o: Tensor,
    /// `(T, F)`
    pub dact: Tensor,
    /// `(T, F)`, gated `(T, 2, F)`.
    pub dup: Tensor,
}

impl Scratch {
    /// Allocates; without `backward` the gradient buffers are empty.
    pub fn new(memory: &Memory, s: &Sizes, backward: bool) -> Result<Self> {
        let t = s.tokens;
        let make =
            |label, width: usize| Tensor::new(memory, Purpose::Activations, label, t * width, DType::F32);
        let back = |label, width: usize| make(label, if backward { width } else { 0 });
        Ok(Self {
            normed: make("normed", s.width)?,
            act: make("act", s.inner)?,
            low: make("low", s.ranks)?,
            dropped: make("dropped", if s.dropout { s.width.max(s.inner).max(s.q_width) } else { 0 })?,
            dlow: back("dlow", s.ranks)?,
            dnormed: back("dnormed", s.width)?,
            dbranch: back("dbranch", if s.output_norms || s.parallel { s.width } else { 0 })?,
            dqkv: back("dqkv", s.q_width + 2 * s.kv_width)?,
            d_o: back("d_o", s.q_width)?,
            dact: back("dact", s.inner)?,
            dup: back("dup", s.up)?,
        })
    }
}

impl Block {
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
        if let Some(streamed) = &self.streamed {
            streamed.bring(rec);
        }
        let (normed, rows) = (&scratch.normed, tables.count);
        let Saved { middle, mlp_out, .. } = saved;
        self.attend(rec, pass, tables, saved, scratch, cache, x)?;
        self.mlp_norm.forward(rec, pass, self.mlp_input(saved, x), None, normed, &saved.mlp_stats, rows)?;
        match &self.after_mlp {
            None => self.mlp.forward(rec, pass, saved, scratch, normed, Some(middle), out, rows),
            Some(norm) => {
                self.mlp.forward(rec, pass, saved, scratch, normed, None, mlp_out, rows)?;
                norm.forward(rec, pass, mlp_out, Some(middle), out, &saved.mlp_out_stats, rows)
            }
        }
    }

    /// Records the first half of the forward pass: saved.middle.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        tables: &Tables,
        saved: &Saved,
        scratch: &Scratch,
        cache: Option<&KvCache>,
        x: &Tensor,
    ) -> Result<()> {
        let (normed, rows) = (&scratch.normed, tables.count);
        let Saved { middle, attention_out, .. } = saved;
        self.attention_norm.forward(rec, pass, x, None, normed, &saved.attention_stats, rows)?;
        let (residual, out) =
            if self.after_attention.is_some() { (None, attention_out) } else { (Some(x), middle) };
        self.attention.forward(rec, pass, tables, saved, scratch, cache, normed, residual, out)?;
        match &self.after_attention {
            None => Ok(()),
            Some(norm) => {
                norm.forward(rec, pass, attention_out, Some(x), middle, &saved.attention_out_stats, rows)
            }
        }
    }

    /// Records once more what the forward pass of x `(T, D)` did not keep, and leaves the MLP's input in
    /// scratch.normed.
    #[allow(clippy::too_many_arguments)]
    fn recompute(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        recompute: Recompute,
        tables: &Tables,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
    ) -> Result<()> {
        let (normed, rows) = (&scratch.normed, tables.count);
        if recompute == Recompute::Full {
            self.attend(rec, pass, tables, saved, scratch, None, x)?;
        }
        self.mlp_norm.forward(rec, pass, self.mlp_input(saved, x), None, normed, &saved.mlp_stats, rows)?;
        match &self.after_mlp {
            // The norm's own output is of no use: dbranch is free.
            Some(norm) if recompute == Recompute::Full => {
                self.mlp.forward(rec, pass, saved, scratch, normed, None, &saved.mlp_out, rows)?;
                norm.forward(rec, pass, &saved.mlp_out, None, &scratch.dbranch, &saved.mlp_out_stats, rows)
            }
            _ if recompute == Recompute::None => Ok(()),
            _ => self.mlp.project(rec, pass, saved, scratch, normed, rows),
        }
    }

    fn mlp_input<'a>(&self, saved: &'a Saved, x: &'a Tensor) -> &'a Tensor {
        if self.parallel { x } else { &saved.middle }
    }

    /// Turns dx `(T, D)`, in place, from the gradient of the block's output into that of its input x. What
    /// the forward pass did not keep, as `recompute` says, is computed again. With `input` false the latter
    /// is not needed (nothing below is trained) and dx is left unfinished.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        tables: &Tables,
        saved: &Saved,
        scratch: &Scratch,
        recompute: Recompute,
        x: &Tensor,
        dx: &Tensor,
        input: bool,
    ) -> Result<()> {
        if let Some(streamed) = &self.streamed {
            streamed.bring(rec);
        }
        let Scratch { normed, dnormed, dbranch, .. } = scratch;
        let rows = tables.count;
        let mlp_input = self.mlp_input(saved, x);
        self.recompute(rec, pass, recompute, tables, saved, scratch, x)?;
        let out = (&saved.mlp_out, &saved.mlp_out_stats);
        let dout = self.before(&self.after_mlp, rec, pass, gradients, out, dx, dbranch, rows)?;
        self.mlp.backward(rec, pass, gradients, saved, scratch, normed, dout, dnormed, rows)?;
        // Where attention reads the same input, its gradient joins dx only when attention has seen dx as it
        // is.
        let mlp_norm = |rec: &mut Recorder| {
            let kept = (mlp_input, &saved.mlp_stats);
            self.mlp_norm.backward(rec, pass, gradients, kept, dnormed, dx, rows, true)
        };
        if !self.parallel {
            mlp_norm(rec)?;
        }
        self.attention_norm.forward(rec, pass, x, None, normed, &saved.attention_stats, rows)?;
        let out = (&saved.attention_out, &saved.attention_out_stats);
        let dout = self.before(&self.after_attention, rec, pass, gradients, out, dx, dbranch, rows)?;
        let dattention = if self.parallel { dbranch } else { dnormed };
        let wanted = (input || self.attention_norm.is_trained()).then_some(dattention);
        self.attention.backward(rec, pass, gradients, tables, saved, scratch, normed, dout, wanted)?;
        if self.parallel {
            mlp_norm(rec)?;
        }
        if wanted.is_none() {
            return Ok(());
        }
        let kept = (x, &saved.attention_stats);
        self.attention_norm.backward(rec, pass, gradients, kept, dattention, dx, rows, true)
    }

    /// The gradient of an output before its norm, in dbranch; without a norm it is dout.
    #[allow(clippy::too_many_arguments)]
    fn before<'a>(
        &self,
        norm: &Option<Norm>,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        kept: (&Tensor, &Tensor),
        dout: &'a Tensor,
        dbranch: &'a Tensor,
        rows: usize,
    ) -> Result<&'a Tensor> {
        let Some(norm) = norm else { return Ok(dout) };
        norm.backward(rec, pass, gradients, kept, dout, dbranch, rows, false)?;
        Ok(dbranch)
    }
}
