//! The norms of a block and of the whole decoder: RMSNorm, or LayerNorm where there is a bias.

use super::{Arenas, Param, Pass};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::rms_norm::{Constants, Shape};
use crate::kernels::{layer_norm, rms_norm};

/// A norm over the width of the residual stream.
pub struct Norm {
    /// `(D)`
    pub weight: Param,
    /// `(D)`; with it the norm is a LayerNorm.
    pub bias: Option<Param>,
    /// D.
    pub width: usize,
    /// Its constants; a LayerNorm's shift is 0.
    pub constants: Constants,
}

impl Norm {
    /// Records y `(rows, D)` = the norm of x `(rows, D)`, + residual where there is one; a LayerNorm takes
    /// none. What the backward pass needs is written to stats: `(rows)`, or `(2, rows)` for a LayerNorm.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        stats: &Tensor,
        rows: usize,
    ) -> Result<()> {
        let (w, shape) = (self.weight.in_arenas(pass.values), Shape { rows, width: self.width });
        match &self.bias {
            None => rms_norm::forward(rec, x, &w, y, stats, residual, shape, self.constants),
            Some(bias) => {
                assert!(residual.is_none(), "LayerNorm has no residual");
                let b = bias.in_arenas(pass.values);
                layer_norm::forward(rec, x, (&w, &b), y, stats, shape, self.constants.eps)
            }
        }
    }

    /// Whether its own parameters are trained.
    pub fn is_trained(&self) -> bool {
        matches!(self.weight, Param::Trained { .. })
    }

    /// Records dx `(rows, D)` = or += (with `accumulate`) the gradient of x; the gradients of its own
    /// parameters are `+=` in `gradients`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        (x, stats): (&Tensor, &Tensor),
        dy: &Tensor,
        dx: &Tensor,
        rows: usize,
        accumulate: bool,
    ) -> Result<()> {
        let (w, shape) = (self.weight.in_arenas(pass.values), Shape { rows, width: self.width });
        let dw = self.weight.gradient(gradients);
        match &self.bias {
            None => {
                let saved = rms_norm::Saved { x, w: &w, rstd: stats, shift: self.constants.shift };
                rms_norm::backward(rec, saved, dy, dx, dw.as_ref(), shape, accumulate)
            }
            Some(bias) => {
                let saved = layer_norm::Saved { x, w: &w, stats };
                let db = bias.gradient(gradients);
                layer_norm::backward(rec, saved, dy, dx, dw.as_ref(), db.as_ref(), shape, accumulate)
            }
        }
    }
}
