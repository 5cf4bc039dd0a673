//! The MLP: down(f(up(x))), or when gated, down(f(gate(x)) * up(x)).

use super::{Backward, Forward, Input, Linear, Recompute, Saved, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::Out;
use crate::kernels::activation::{self, Function, Shape};

/// The MLP half of a block.
#[derive(Clone)]
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
        self.down.forward(rec, forward, Input { x: act, low: &saved.low.down }, out)
    }

    /// Records saved.up from x `(T, D)`.
    fn project(&self, rec: &mut Recorder, forward: Forward, saved: &Saved, x: &Tensor) -> Result<()> {
        self.up.forward(rec, forward, Input { x, low: &saved.low.up }, Out::to(&saved.up))
    }

    /// Records the part of the forward pass of x `(T, D)` that the backward pass needs and that was not kept.
    pub fn recompute(&self, rec: &mut Recorder, forward: Forward, saved: &Saved, x: &Tensor) -> Result<()> {
        self.project(rec, forward, saved, x)?;
        if saved.recompute != Recompute::Full || self.down.lora.is_none() {
            return Ok(());
        }
        let act = &forward.scratch.act;
        activation::forward(rec, &saved.up, act, self.shape(forward.rows))?;
        self.down.project_down(rec, forward, Input { x: act, low: &saved.low.down })
    }

    /// Records the first part of the backward pass: dx `(T, D)` = the gradient of x, and all gradients of
    /// parameters but those of [`Mlp::backward_weights`], which must follow before another layer's backward
    /// pass.
    pub fn backward_input(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        saved: &Saved,
        dout: &Tensor,
        dx: &Tensor,
    ) -> Result<()> {
        let Scratch { act, dact, dup, .. } = backward.forward.scratch;
        let shape = self.shape(backward.forward.rows);
        self.down.backward_input(rec, backward, &saved.low.down, dout, Some(dact))?;
        activation::backward(rec, &saved.up, dact, dup, act, shape)?;
        self.down.backward_weights(rec, backward, act, dout)?;
        self.up.backward_input(rec, backward, &saved.low.up, dup, Some(dx))
    }

    /// Records the second part: [`Linear::backward_weights`] of the first projection, whose input is x `(T,
    /// D)`.
    pub fn backward_weights(&self, rec: &mut Recorder, backward: Backward, x: &Tensor) -> Result<()> {
        self.up.backward_weights(rec, backward, x, &backward.forward.scratch.dup)
    }
}
