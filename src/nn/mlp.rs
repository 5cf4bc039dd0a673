//! The MLP: down(f(up(x))), or when gated, down(f(gate(x)) * up(x)).

use super::{Backward, Forward, Linear, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::Out;
use crate::kernels::activation::{self, Function, Shape};

/// The MLP half of a block.
pub struct Mlp {
    /// The up projection; when gated, gate and up side by side.
    pub up: Linear,
    /// The down projection.
    pub down: Linear,
    /// f.
    pub function: Function,
    /// Whether there is a gate.
    pub gated: bool,
}

impl Mlp {
    fn shape(&self, rows: usize) -> Shape {
        Shape { rows, inner: self.down.inputs, function: self.function, gated: self.gated }
    }

    /// Records out `(T, D)` = the MLP of x `(T, D)`.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        saved: &Saved,
        x: &Tensor,
        out: Out,
    ) -> Result<()> {
        let act = &forward.scratch.act;
        self.project(rec, forward, saved, x)?;
        activation::forward(rec, &saved.up, act, self.shape(forward.rows))?;
        self.down.forward(rec, forward, act, out)
    }

    /// Records the part of the forward pass that the backward pass needs: saved.up from x `(T, D)`.
    pub fn project(&self, rec: &mut Recorder, forward: Forward, saved: &Saved, x: &Tensor) -> Result<()> {
        self.up.forward(rec, forward, x, Out::to(&saved.up))
    }

    /// Records the gradients; dx is overwritten. The activation is recomputed.
    pub fn backward(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        saved: &Saved,
        x: &Tensor,
        dout: &Tensor,
        dx: &Tensor,
    ) -> Result<()> {
        let Scratch { act, dact, dup, .. } = backward.forward.scratch;
        let shape = self.shape(backward.forward.rows);
        activation::forward(rec, &saved.up, act, shape)?;
        self.down.backward(rec, backward, act, dout, Some(dact))?;
        activation::backward(rec, &saved.up, dact, dup, shape)?;
        self.up.backward(rec, backward, x, dup, Some(dx))
    }
}
