//! One decoder block: x + attention(norm(x)), then + mlp(norm(·)), with the variations that model families
//! have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Arenas, Attention, KvCache, Mlp, Norm, Pass, Recompute, Saved, Scratch, Tables};
use crate::Result;
use crate::gpu::{Recorder, Tensor};

/// A pre-norm decoder block.
pub struct Block {
    /// The norm before attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// The norm of attention's output, before that is added to the residual stream (Gemma).
    pub after_attention: Option<Norm>,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// MLP.
    pub mlp: Mlp,
    /// The norm of the MLP's output, before that is added to the residual stream (Gemma).
    pub after_mlp: Option<Norm>,
    /// Whether the MLP reads the block's input, as attention does, instead of the residual stream after
    /// attention (GPT-NeoX). Such blocks have no norms of outputs.
    pub parallel: bool,
    /// Its matrices, where they are kept in host memory and share device tensors with the other blocks.
    pub streamed: Option<Streamed>,
}

/// Frozen matrices of a block in host memory. They are copied to the device each time the block runs.
pub struct Streamed {
    /// The block's number.
    pub index: usize,
    /// The device tensors that all blocks use in turn, each with this block's bytes for it.
    pub matrices: Vec<(Tensor, Vec<u8>)>,
    /// The number of the block whose matrices are in the tensors.
    pub present: Arc<AtomicUsize>,
}

impl Streamed {
    /// A number that no block has: the tensors hold no block's matrices.
    pub const NONE: usize = usize::MAX;

    /// Submits what is recorded and copies the matrices to the device, unless they are already there.
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

impl Block {
    /// Records out `(T, D)` = the output of the block for x `(T, D)`. x and out must be different buffers.
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

    /// Records the first half of the forward pass, which writes saved.middle.
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

    /// Records again what the forward pass of x `(T, D)` did not keep, and leaves the MLP's input in
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
            // The norm's output is not needed. It goes to dbranch, which is free here.
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
    /// the forward pass did not keep, as `recompute` says, is computed again. With `input` false the gradient
    /// of x is not needed (nothing below is trained), and dx is left unfinished.
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
        // In a parallel block, the gradient from the MLP is added to dx only after attention's backward pass
        // has read dx.
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

    /// The gradient of an output before its norm, written to dbranch. Without a norm it is dout itself.
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
