//! Sums over tokens: gradients of biases and of norm weights.

use super::{Mat, check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["column_sum"]; rows: u32, width: u32, at: u32, stride: u32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// `out[c] += Σ_t a[t, c]`: a `(rows, width)`, out `(width)`.
pub fn plain(rec: &mut Recorder, a: Mat, out: &Tensor, rows: usize, width: usize) -> Result<()> {
    check("column_sum", &[("a", a.data, a.extent(rows, width)), ("out", out, width)])?;
    let shader = kernel(rec.gpu(), "column_sum");
    let (at, stride) = (a.at as u32, a.stride as u32);
    let params = Params { rows: rows as u32, width: width as u32, at, stride };
    rec.dispatch(&shader, &params, &[a.data, out], groups_of_64(width), (rows * width) as f64);
    Ok(())
}

/// `out[c] += Σ_t a[t, c] · b[t, c] · s[t]`: a, b `(rows, width)`, s `(rows)`, out `(width)`.
pub fn scaled(
    rec: &mut Recorder,
    a: &Tensor,
    b: &Tensor,
    s: &Tensor,
    out: &Tensor,
    rows: usize,
    width: usize,
) -> Result<()> {
    let count = rows * width;
    check("column_sum", &[("a", a, count), ("b", b, count), ("s", s, rows), ("out", out, width)])?;
    let shader = kernel(rec.gpu(), "column_sum SCALED");
    let params = Params { rows: rows as u32, width: width as u32, at: 0, stride: width as u32 };
    rec.dispatch(&shader, &params, &[a, out, b, s], groups_of_64(width), 3.0 * count as f64);
    Ok(())
}
