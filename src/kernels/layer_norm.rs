//! LayerNorm (Ba et al., 1607.06450).

use super::rms_norm::Shape;
use super::{Mat, check, column_sum, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["layer_norm"]; rows: u32, width: u32, eps: f32);
params!(BackwardParams for ["layer_norm_backward"]; rows: u32, width: u32, accumulate: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block(), BackwardParams::block()]
}

/// `y = (x - mean) * rstd * w + b` with `rstd = 1 / sqrt(variance + eps)`: x, y `(T, D)`, w, b `(D)`, stats
/// `(2, T)`: rstd, mean.
pub fn forward(
    rec: &mut Recorder,
    x: &Tensor,
    (w, b): (&Tensor, &Tensor),
    y: &Tensor,
    stats: &Tensor,
    shape: Shape,
    eps: f32,
) -> Result<()> {
    let Shape { rows, width } = shape;
    check("layer_norm", &[("x", x, rows * width), ("w", w, width), ("b", b, width)])?;
    check("layer_norm", &[("y", y, rows * width), ("stats", stats, 2 * rows)])?;
    let (variant, groups) = shape.variant(rec, "layer_norm");
    let shader = kernel(rec.gpu(), &variant);
    let params = Params { rows: rows as u32, width: width as u32, eps };
    rec.dispatch(&shader, &params, &[x, w, b, y, stats], groups, 8.0 * (rows * width) as f64);
    Ok(())
}

/// What the backward pass needs from the forward pass.
pub struct Saved<'a> {
    /// `(T, D)`, the norm's input.
    pub x: &'a Tensor,
    /// `(D)`, its weight.
    pub w: &'a Tensor,
    /// `(2, T)`: rstd, mean.
    pub stats: &'a Tensor,
    /// Where the norm's output `(T, D)` is written again, if it is needed, and b `(D)`.
    pub again: Option<(&'a Tensor, &'a Tensor)>,
}

/// `dx` = or += (with `accumulate`) the gradient of x `(T, D)`; `dw +=` and `db +=` those of w and b `(D)` if
/// they are trained.
pub fn backward(
    rec: &mut Recorder,
    saved: Saved,
    dy: &Tensor,
    dx: &Tensor,
    (dw, db): (Option<&Tensor>, Option<&Tensor>),
    shape: Shape,
    accumulate: bool,
) -> Result<()> {
    let (Shape { rows, width }, Saved { x, w, stats, again }) = (shape, saved);
    let count = rows * width;
    check("layer_norm_backward", &[("x", x, count), ("w", w, width), ("dy", dy, count), ("dx", dx, count)])?;
    let along = Mat::new(dy, width);
    if let Some(dw) = dw {
        column_sum::centered(rec, along, Mat::new(x, width), stats, dw, (rows, width))?;
    }
    if let Some(db) = db {
        column_sum::plain(rec, along, db, rows, width)?;
    }
    let (mut variant, groups) = shape.variant(rec, "layer_norm_backward");
    let mut bindings = vec![x, w, stats, dy, dx];
    if let Some((y, b)) = again {
        check("layer_norm_backward", &[("y", y, count), ("b", b, width)])?;
        variant += " AGAIN";
        bindings.extend([y, b]);
    }
    let shader = kernel(rec.gpu(), &variant);
    let params = BackwardParams { rows: rows as u32, width: width as u32, accumulate: accumulate as u32 };
    rec.dispatch(&shader, &params, &bindings, groups, 12.0 * count as f64);
    Ok(())
}
