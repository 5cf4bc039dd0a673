//! RMSNorm (Zhang & Sennrich, 1910.07467).

use super::{Mat, Out, by_rows, check, column_sum, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["rms_norm"]; rows: u32, width: u32, eps: f32, shift: f32);
params!(BackwardParams for ["rms_norm_backward"]; rows: u32, width: u32, accumulate: u32, shift: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block(), BackwardParams::block()]
}

/// The shape of a norm's input; also used by [`super::layer_norm`].
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tokens.
    pub rows: usize,
    /// Elements of a token.
    pub width: usize,
}

impl Shape {
    pub(super) fn variant(&self, rec: &Recorder, shader: &str) -> (String, u64) {
        let per_load = if self.width.is_multiple_of(4) { 4 } else { 1 };
        let (variant, groups) = by_rows(rec, shader, self.rows, self.width / per_load);
        (format!("{variant}{}", if per_load == 4 { " VEC4" } else { "" }), groups)
    }
}

/// A norm's constants.
#[derive(Debug, Clone, Copy)]
pub struct Constants {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 1 in Gemma, else 0.
    pub shift: f32,
}

/// `y = x * rstd * (w + shift)`, + residual if there is one, with `rstd = 1 / sqrt(mean(x²) + eps)`: x, y,
/// residual `(T, D)`, w `(D)`, rstd `(T)`.
pub fn forward(
    rec: &mut Recorder,
    x: &Tensor,
    w: &Tensor,
    Out { y, residual }: Out,
    rstd: &Tensor,
    shape: Shape,
    Constants { eps, shift }: Constants,
) -> Result<()> {
    let Shape { rows, width } = shape;
    check(
        "rms_norm",
        &[("x", x, rows * width), ("w", w, width), ("y", y, rows * width), ("rstd", rstd, rows)],
    )?;
    let (mut variant, groups) = shape.variant(rec, "rms_norm");
    let mut bindings = vec![x, w, y, rstd];
    if let Some(residual) = residual {
        check("rms_norm", &[("residual", residual, rows * width)])?;
        variant += " RESIDUAL";
        bindings.push(residual);
    }
    let shader = kernel(rec.gpu(), &variant);
    let params = Params { rows: rows as u32, width: width as u32, eps, shift };
    rec.dispatch(&shader, &params, &bindings, groups, 5.0 * (rows * width) as f64);
    Ok(())
}

/// What the backward pass needs from the forward pass.
pub struct Saved<'a> {
    /// `(T, D)`, the norm's input.
    pub x: &'a Tensor,
    /// `(D)`, its weight.
    pub w: &'a Tensor,
    /// `(T)`: `1 / sqrt(mean(x²) + eps)`.
    pub rstd: &'a Tensor,
    /// Added to the weight.
    pub shift: f32,
    /// `(T, D)`: where the norm's output is written again, if it is needed.
    pub again: Option<&'a Tensor>,
}

/// `dx` = or += (with `accumulate`) the gradient of x `(T, D)`; `dw +=` that of w `(D)` if it is trained.
pub fn backward(
    rec: &mut Recorder,
    saved: Saved,
    dy: &Tensor,
    dx: &Tensor,
    dw: Option<&Tensor>,
    shape: Shape,
    accumulate: bool,
) -> Result<()> {
    let (Shape { rows, width }, Saved { x, w, rstd, shift, again }) = (shape, saved);
    let count = rows * width;
    check("rms_norm_backward", &[("x", x, count), ("w", w, width), ("dy", dy, count), ("dx", dx, count)])?;
    if let Some(dw) = dw {
        let [dy, x] = [dy, x].map(|tensor| Mat::new(tensor, width));
        column_sum::scaled(rec, dy, x, Mat::new(rstd, 1), dw, (rows, width))?;
    }
    let (mut variant, groups) = shape.variant(rec, "rms_norm_backward");
    let mut bindings = vec![x, w, rstd, dy, dx];
    if let Some(y) = again {
        check("rms_norm_backward", &[("y", y, count)])?;
        variant += " AGAIN";
        bindings.push(y);
    }
    let shader = kernel(rec.gpu(), &variant);
    let accumulate = accumulate as u32;
    let params = BackwardParams { rows: rows as u32, width: width as u32, accumulate, shift };
    rec.dispatch(&shader, &params, &bindings, groups, 8.0 * count as f64);
    Ok(())
}
