//! One decoder block: x + attention(norm(x)), then + mlp(norm(·)), with the variations of the supported model
//! families.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Attention, Backward, Forward, KvCache, Mlp, Norm, Recompute, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::Out;

/// A pre-norm decoder block. Its clones share the tensors.
#[derive(Clone)]
pub struct Block {
    /// The norm before attention.
    pub attention_norm: Norm,
    /// The attention layer.
    pub attention: Attention,
    /// The norm of attention's output, before that is added to the residual stream (Gemma).
    pub after_attention: Option<Norm>,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
    /// The norm of the MLP's output, before that is added to the residual stream (Gemma).
    pub after_mlp: Option<Norm>,
    /// Whether the MLP reads the block's input, as attention does, instead of the residual stream after
    /// attention (GPT-NeoX). Such blocks have no norms of outputs.
    pub parallel: bool,
    /// The block's matrices, if they are kept in host memory and share device tensors with the other blocks.
    pub streamed: Option<Streamed>,
}

/// Frozen matrices of a block in host memory. They are copied to the device each time the block runs.
#[derive(Clone)]
pub struct Streamed {
    /// Index of the block.
    pub index: usize,
    /// The device tensors that all blocks use in turn, each with this block's bytes for it.
    pub matrices: Arc<[(Tensor, Vec<u8>)]>,
    /// Index of the block whose matrices are in the tensors, or [`Streamed::NONE`].
    pub present: Arc<AtomicUsize>,
}

impl Streamed {
    /// Value of `present` while the tensors contain no block's matrices.
    pub const NONE: usize = usize::MAX;

    /// Submits the recorded commands and copies the matrices to the device, unless they are already there.
    fn bring(&self, rec: &mut Recorder) {
        if self.present.swap(self.index, Ordering::Relaxed) == self.index {
            return;
        }
        rec.submit();
        for (tensor, bytes) in self.matrices.iter() {
            tensor.write_bytes(rec.gpu(), bytes);
        }
        rec.keep_pace();
    }
}

impl Block {
    /// Records out `(T, D)` = the output of the block for x `(T, D)`. x and out must be different buffers.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        saved: &Saved,
        cache: Option<&KvCache>,
        x: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        if let Some(streamed) = &self.streamed {
            streamed.bring(rec);
        }
        let normed = &forward.scratch.normed;
        let Saved { middle, mlp_out, .. } = saved;
        self.attend(rec, forward, saved, cache, x)?;
        self.norm_mlp_input(rec, forward, saved, x)?;
        match &self.after_mlp {
            None => self.mlp.forward(rec, forward, saved, normed, Out::plus(out, middle)),
            Some(norm) => {
                self.mlp.forward(rec, forward, saved, normed, Out::to(mlp_out))?;
                norm.forward(rec, forward, mlp_out, Out::plus(out, middle), &saved.mlp_out_stats)
            }
        }
    }

    /// Records the attention half of the forward pass, which writes saved.middle.
    fn attend(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        saved: &Saved,
        cache: Option<&KvCache>,
        x: &Tensor,
    ) -> Result<()> {
        let normed = &forward.scratch.normed;
        let Saved { middle, attention_out, .. } = saved;
        self.attention_norm.forward(rec, forward, x, Out::to(normed), &saved.attention_stats)?;
        let out = if self.after_attention.is_some() { Out::to(attention_out) } else { Out::plus(middle, x) };
        self.attention.forward(rec, forward, saved, cache, normed, out)?;
        match &self.after_attention {
            None => Ok(()),
            Some(norm) => {
                let stats = &saved.attention_out_stats;
                norm.forward(rec, forward, attention_out, Out::plus(middle, x), stats)
            }
        }
    }

    /// Recomputes what the forward pass of x `(T, D)` did not keep. If that is anything, scratch.normed
    /// contains the MLP's input afterwards.
    fn recompute(&self, rec: &mut Recorder, forward: Forward, saved: &Saved, x: &Tensor) -> Result<()> {
        let Scratch { normed, dbranch, .. } = forward.scratch;
        match saved.recompute {
            Recompute::None => return Ok(()),
            Recompute::Mlp => {}
            Recompute::Full => self.attend(rec, forward, saved, None, x)?,
        }
        self.norm_mlp_input(rec, forward, saved, x)?;
        match &self.after_mlp {
            // The norm's output is not needed. It goes to dbranch, which is free here.
            Some(norm) if saved.recompute == Recompute::Full => {
                self.mlp.forward(rec, forward, saved, normed, Out::to(&saved.mlp_out))?;
                norm.forward(rec, forward, &saved.mlp_out, Out::to(dbranch), &saved.mlp_out_stats)
            }
            _ => self.mlp.recompute(rec, forward, saved, normed),
        }
    }

    /// Records scratch.normed = the norm of the MLP's input.
    fn norm_mlp_input(&self, rec: &mut Recorder, forward: Forward, saved: &Saved, x: &Tensor) -> Result<()> {
        let out = Out::to(&forward.scratch.normed);
        self.mlp_norm.forward(rec, forward, self.mlp_input(saved, x), out, &saved.mlp_stats)
    }

    fn mlp_input<'a>(&self, saved: &'a Saved, x: &'a Tensor) -> &'a Tensor {
        if self.parallel { x } else { &saved.middle }
    }

    /// Turns dx `(T, D)`, in place, from the gradient of the block's output into that of its input x. What
    /// the forward pass did not keep is recomputed. With `input` false, the gradient of x is not needed (no
    /// parameters below are trained), and dx is left incomplete.
    pub fn backward(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        saved: &Saved,
        x: &Tensor,
        dx: &Tensor,
        input: bool,
    ) -> Result<()> {
        if let Some(streamed) = &self.streamed {
            streamed.bring(rec);
        }
        let forward = backward.forward;
        let Scratch { normed, dnormed, dbranch, .. } = forward.scratch;
        self.recompute(rec, forward, saved, x)?;
        let out = (&saved.mlp_out, &saved.mlp_out_stats);
        let dout = before(&self.after_mlp, rec, backward, out, dx)?;
        self.mlp.backward_input(rec, backward, saved, dout, dnormed)?;
        // The MLP's input, unless it was recomputed already.
        let again = (saved.recompute == Recompute::None).then_some(normed);
        let mlp_norm = |rec: &mut Recorder, again: Option<&Tensor>| {
            let kept = (self.mlp_input(saved, x), &saved.mlp_stats);
            self.mlp_norm.backward(rec, backward, kept, (dnormed, dx), true, again)
        };
        // In a parallel block, the gradient from the MLP is added to dx only after attention's backward pass
        // has read dx.
        match self.parallel {
            true if again.is_some() => self.norm_mlp_input(rec, forward, saved, x)?,
            true => {}
            false => mlp_norm(rec, again)?,
        }
        self.mlp.backward_weights(rec, backward, normed)?;
        let out = (&saved.attention_out, &saved.attention_out_stats);
        let dout = before(&self.after_attention, rec, backward, out, dx)?;
        let dattention = if self.parallel { dbranch } else { dnormed };
        let wanted = (input || self.attention_norm.is_trained()).then_some(dattention);
        self.attention.backward_input(rec, backward, saved, dout, wanted)?;
        if self.parallel {
            mlp_norm(rec, None)?;
        }
        match wanted {
            Some(dattention) => {
                let kept = (x, &saved.attention_stats);
                self.attention_norm.backward(rec, backward, kept, (dattention, dx), true, Some(normed))?;
            }
            None => self.attention_norm.forward(rec, forward, x, Out::to(normed), &saved.attention_stats)?,
        }
        self.attention.backward_weights(rec, backward, normed)
    }
}

/// The gradient of an output before its norm, in scratch.dbranch. Without a norm it is dout itself.
fn before<'a>(
    norm: &Option<Norm>,
    rec: &mut Recorder,
    backward: Backward<'a>,
    kept: (&Tensor, &Tensor),
    dout: &'a Tensor,
) -> Result<&'a Tensor> {
    let Some(norm) = norm else { return Ok(dout) };
    let dbranch = &backward.forward.scratch.dbranch;
    norm.backward(rec, backward, kept, (dout, dbranch), false, None)?;
    Ok(dbranch)
}
