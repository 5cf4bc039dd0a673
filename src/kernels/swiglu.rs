//! The gated activation of Llama's MLP (Shazeer, 2002.05202): `act = silu(gate) * up`.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["swiglu", "swiglu_backward"]; rows: u32, vectors: u32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// Sizes of an activation; F must be a multiple of 4.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tokens, T.
    pub rows: usize,
    /// Inner width, F.
    pub inner: usize,
}

impl Shape {
    fn params(self) -> Params {
        assert!(self.inner.is_multiple_of(4), "swiglu: the inner width is a multiple of 4");
        Params { rows: self.rows as u32, vectors: (self.inner / 4) as u32 }
    }
}

/// `act = silu(gate) * up`: gate_up `(T, 2, F)`, act `(T, F)`.
pub fn forward(rec: &mut Recorder, gate_up: &Tensor, act: &Tensor, shape: Shape) -> Result<()> {
    let count = shape.rows * shape.inner;
    check("swiglu", &[("gate_up", gate_up, 2 * count), ("act", act, count)])?;
    let shader = kernel(rec.gpu(), "swiglu");
    let groups = groups_of_64(count / 4);
    rec.dispatch(&shader, &shape.params(), &[gate_up, act], groups, 8.0 * count as f64);
    Ok(())
}

/// `dgate_up =` `(T, 2, F)` from `dact` `(T, F)`.
pub fn backward(
    rec: &mut Recorder,
    gate_up: &Tensor,
    dact: &Tensor,
    dgate_up: &Tensor,
    shape: Shape,
) -> Result<()> {
    let count = shape.rows * shape.inner;
    let tensors = [("gate_up", gate_up, 2 * count), ("dact", dact, count), ("dgate_up", dgate_up, 2 * count)];
    check("swiglu_backward", &tensors)?;
    let shader = kernel(rec.gpu(), "swiglu_backward");
    let bindings = [gate_up, dact, dgate_up];
    rec.dispatch(&shader, &shape.params(), &bindings, groups_of_64(count / 4), 12.0 * count as f64);
    Ok(())
}
