//! The norms of a block and of the whole decoder: RMSNorm, or LayerNorm if there is a bias.

use super::{Backward, Forward, Param};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::rms_norm::{Constants, Shape};
use crate::kernels::{Out, layer_norm, rms_norm};

/// A norm over the width of the residual stream.
#[derive(Clone)]
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
    /// Records out `(rows, D)` = the norm of x `(rows, D)`, and the statistics for the backward pass:
    /// `(rows)`, or `(2, rows)` for a LayerNorm.
    ///
    /// # Panics
    /// When a LayerNorm is given a residual: a bug in the caller.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        x: &Tensor,
        out: Out,
        stats: &Tensor,
    ) -> Result<()> {
        let Forward { pass, rows, .. } = forward;
        let (w, shape) = (self.weight.in_arenas(pass.values), Shape { rows, width: self.width });
        match &self.bias {
            None => rms_norm::forward(rec, x, &w, out, stats, shape, self.constants),
            Some(bias) => {
                assert!(out.residual.is_none(), "LayerNorm has no residual");
                let b = bias.in_arenas(pass.values);
                layer_norm::forward(rec, x, (&w, &b), out.y, stats, shape, self.constants.eps)
            }
        }
    }

    /// Whether its own parameters are trained.
    pub fn is_trained(&self) -> bool {
        matches!(self.weight, Param::Trained { .. })
    }

    /// Records dx `(rows, D)` = or += (with `accumulate`) the gradient of x; the gradients of its own
    /// parameters are added to `gradients`. If `again` is given, the norm's output is written to it again.
    pub fn backward(
        &self,
        rec: &mut Recorder,
        Backward { forward, gradients }: Backward,
        (x, stats): (&Tensor, &Tensor),
        (dy, dx): (&Tensor, &Tensor),
        accumulate: bool,
        again: Option<&Tensor>,
    ) -> Result<()> {
        let Forward { pass, rows, .. } = forward;
        let (w, shape) = (self.weight.in_arenas(pass.values), Shape { rows, width: self.width });
        let dw = self.weight.gradient(gradients);
        match &self.bias {
            None => {
                let saved = rms_norm::Saved { x, w: &w, rstd: stats, shift: self.constants.shift, again };
                rms_norm::backward(rec, saved, dy, dx, dw.as_ref(), shape, accumulate)
            }
            Some(bias) => {
                let b = bias.in_arenas(pass.values);
                let saved = layer_norm::Saved { x, w: &w, stats, again: again.map(|y| (y, &b)) };
                let db = bias.gradient(gradients);
                layer_norm::backward(rec, saved, dy, dx, (dw.as_ref(), db.as_ref()), shape, accumulate)
            }
        }
    }
}
