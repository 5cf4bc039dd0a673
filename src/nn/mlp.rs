//! The gated MLP: down(silu(gate(x)) * up(x)).

use super::{Arenas, Linear, Pass, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::swiglu;

/// The MLP half of a block.
pub struct Mlp {
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

impl Mlp {
    /// Records out `(T, D)` = the MLP of x `(T, D)`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        out: &Tensor,
        count: usize,
    ) -> Result<()> {
        self.gate.forward(rec, pass, scratch, x, &saved.gate, count)?;
        self.up.forward(rec, pass, scratch, x, &saved.up, count)?;
        swiglu::forward(rec, &saved.gate, &saved.up, &scratch.act, count * self.gate.outputs)?;
        self.down.forward(rec, pass, scratch, &scratch.act, out, count)
    }

    /// Records the gradients: dx `=`. The activation is computed again.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        dout: &Tensor,
        dx: &Tensor,
        count: usize,
    ) -> Result<()> {
        let elements = count * self.gate.outputs;
        let Scratch { act, dact, dgate, dup, .. } = scratch;
        swiglu::forward(rec, &saved.gate, &saved.up, act, elements)?;
        self.down.backward(rec, pass, gradients, scratch, act, dout, Some(dact), count, false)?;
        swiglu::backward(rec, &saved.gate, &saved.up, dact, dgate, dup, elements)?;
        self.gate.backward(rec, pass, gradients, scratch, x, dgate, Some(dx), count, false)?;
        self.up.backward(rec, pass, gradients, scratch, x, dup, Some(dx), count, true)
    }
}
