//! The gated MLP: down(silu(gate(x)) * up(x)).

use super::{Arenas, Linear, Pass, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::swiglu::{self, Shape};

/// The MLP half of a block.
pub struct Mlp {
    /// Gate and up projections, side by side.
    pub gate_up: Linear,
    /// Down projection.
    pub down: Linear,
}

impl Mlp {
    fn shape(&self, count: usize) -> Shape {
        Shape { rows: count, inner: self.down.inputs }
    }

    /// Records out `(T, D)` = residual + the MLP of x `(T, D)`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        residual: &Tensor,
        out: &Tensor,
        count: usize,
    ) -> Result<()> {
        self.gate_up.forward(rec, pass, scratch, x, &saved.gate_up, None, count)?;
        swiglu::forward(rec, &saved.gate_up, &scratch.act, self.shape(count))?;
        self.down.forward(rec, pass, scratch, &scratch.act, out, Some(residual), count)
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
        let Scratch { act, dact, dgate_up, .. } = scratch;
        swiglu::forward(rec, &saved.gate_up, act, self.shape(count))?;
        self.down.backward(rec, pass, gradients, scratch, act, dout, Some(dact), count)?;
        swiglu::backward(rec, &saved.gate_up, dact, dgate_up, self.shape(count))?;
        self.gate_up.backward(rec, pass, gradients, scratch, x, dgate_up, Some(dx), count)
    }
}
