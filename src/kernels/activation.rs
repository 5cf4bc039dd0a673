//! The MLP's activation: of one projection, or, when gated, of two (Shazeer, 2002.05202).

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["activation", "activation_backward"]; rows: u32, vectors: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// f in [`forward`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// x · sigmoid(x)
    Silu,
    /// x · Φ(x), Φ the distribution function of the normal distribution (Hendrycks & Gimpel, 1606.08415).
    Gelu,
    /// As [`Function::Gelu`], with Φ approximated by tanh.
    GeluTanh,
}

/// Sizes of an activation; F must be a multiple of 4.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tokens, T.
    pub rows: usize,
    /// Inner width, F.
    pub inner: usize,
    /// f.
    pub function: Function,
    /// Whether f(gate) is multiplied by a second projection.
    pub gated: bool,
}

impl Shape {
    fn params(self) -> Params {
        assert!(self.inner.is_multiple_of(4), "activation: the inner width is a multiple of 4");
        Params { rows: self.rows as u32, vectors: (self.inner / 4) as u32 }
    }

    fn variant(self, shader: &str) -> String {
        let function = match self.function {
            Function::Silu => "SILU",
            Function::Gelu => "GELU",
            Function::GeluTanh => "GELU_TANH",
        };
        format!("{shader} {function}{}", if self.gated { " GATED" } else { "" })
    }

    /// Elements of the output and of the input.
    fn counts(self) -> (usize, usize) {
        let count = self.rows * self.inner;
        (count, if self.gated { 2 * count } else { count })
    }
}

/// `act = f(x)` of x `(T, F)`; when gated, `act = f(gate) · up` of x `(T, 2, F)`. act is `(T, F)`.
pub fn forward(rec: &mut Recorder, x: &Tensor, act: &Tensor, shape: Shape) -> Result<()> {
    let (count, inputs) = shape.counts();
    check("activation", &[("x", x, inputs), ("act", act, count)])?;
    let shader = kernel(rec.gpu(), &shape.variant("activation"));
    rec.dispatch(&shader, &shape.params(), &[x, act], groups_of_64(count / 4), 8.0 * count as f64);
    Ok(())
}

/// `dx =` the gradient of x, in x's layout, from dact `(T, F)`; act as in [`forward`], computed again.
pub fn backward(
    rec: &mut Recorder,
    x: &Tensor,
    dact: &Tensor,
    dx: &Tensor,
    act: &Tensor,
    shape: Shape,
) -> Result<()> {
    let (count, inputs) = shape.counts();
    check("activation_backward", &[("x", x, inputs), ("dact", dact, count)])?;
    check("activation_backward", &[("dx", dx, inputs), ("act", act, count)])?;
    let shader = kernel(rec.gpu(), &shape.variant("activation_backward"));
    let bindings = [x, dact, dx, act];
    rec.dispatch(&shader, &shape.params(), &bindings, groups_of_64(count / 4), 16.0 * count as f64);
    Ok(())
}
