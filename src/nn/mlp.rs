//! The MLP: down(f(up(x))), or when gated, down(f(gate(x)) * up(x)).

use super::{Arenas, Linear, Pass, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::activation::{self, Function, Shape};

/// The MLP half of a block.
pub struct Mlp {
    /// The up projection; when gated, gate and up side by side.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// f.
    pub function: Function,
    /// Whether there is a gate.
    pub gated: bool,
}

impl Mlp {
    fn shape(&self, count: usize) -> Shape {
        Shape { rows: count, inner: self.down.inputs, function: self.function, gated: self.gated }
    }

    /// Records out `(T, D)` = the MLP of x `(T, D)`, + residual where there is one.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        residual: Option<&Tensor>,
        out: &Tensor,
        count: usize,
    ) -> Result<()> {
        self.project(rec, pass, saved, scratch, x, count)?;
        activation::forward(rec, &saved.up, &scratch.act, self.shape(count))?;
        self.down.forward(rec, pass, scratch, &scratch.act, out, residual, count)
    }

    /// Records the part of the forward pass that the backward pass needs: saved.up of x `(T, D)`.
    pub fn project(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        saved: &Saved,
        scratch: &Scratch,
        x: &Tensor,
        count: usize,
    ) -> Result<()> {
        self.up.forward(rec, pass, scratch, x, &saved.up, None, count)
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
        let Scratch { act, dact, dup, .. } = scratch;
        activation::forward(rec, &saved.up, act, self.shape(count))?;
        self.down.backward(rec, pass, gradients, scratch, act, dout, Some(dact), count)?;
        activation::backward(rec, &saved.up, dact, dup, self.shape(count))?;
        self.up.backward(rec, pass, gradients, scratch, x, dup, Some(dx), count)
    }
}
