//! Sums over tokens: gradients of biases and of norm weights.

use super::{Mat, check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["column_sum"]; rows: u32, width: u32, at: u32, stride: u32,
    b_at: u32, b_stride: u32, s_at: u32, s_stride: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// `out[c] += Σ_t a[t, c]`: a `(rows, width)`, out `(width)`.
pub fn plain(rec: &mut Recorder, a: Mat, out: &Tensor, rows: usize, width: usize) -> Result<()> {
    check("column_sum", &[("a", a.data, a.extent(rows, width)), ("out", out, width)])?;
    let shader = kernel(rec.gpu(), "column_sum");
    let params = params(rows, width, a, None);
    rec.dispatch(&shader, &params, &[a.data, out], groups_of_64(width), (rows * width) as f64);
    Ok(())
}

/// `out[c] += Σ_t a[t, c] · b[t, c] · s[t]`: a, b `(rows, width)`, s `(rows, 1)`, out `(width)`.
pub fn scaled(
    rec: &mut Recorder,
    a: Mat,
    b: Mat,
    s: Mat,
    out: &Tensor,
    (rows, width): (usize, usize),
) -> Result<()> {
    products(rec, "column_sum SCALED", [a, b, s], s.extent(rows, 1), out, (rows, width))
}

/// `out[c] += Σ_t a[t, c] · (b[t, c] − mean[t]) · s[t]`: a, b `(rows, width)`, stats `(2, rows)`: s, mean;
/// out `(width)`.
pub fn centered(
    rec: &mut Recorder,
    a: Mat,
    b: Mat,
    stats: &Tensor,
    out: &Tensor,
    (rows, width): (usize, usize),
) -> Result<()> {
    products(rec, "column_sum SCALED CENTERED", [a, b, Mat::new(stats, 1)], 2 * rows, out, (rows, width))
}

fn products(
    rec: &mut Recorder,
    variant: &str,
    [a, b, s]: [Mat; 3],
    stats: usize,
    out: &Tensor,
    (rows, width): (usize, usize),
) -> Result<()> {
    let extents = [a, b].map(|mat| mat.extent(rows, width));
    check("column_sum", &[("a", a.data, extents[0]), ("b", b.data, extents[1])])?;
    check("column_sum", &[("s", s.data, stats), ("out", out, width)])?;
    let shader = kernel(rec.gpu(), variant);
    let params = params(rows, width, a, Some((b, s)));
    let bindings = [a.data, out, b.data, s.data];
    rec.dispatch(&shader, &params, &bindings, groups_of_64(width), 3.0 * (rows * width) as f64);
    Ok(())
}

fn params(rows: usize, width: usize, a: Mat, factors: Option<(Mat, Mat)>) -> Params {
    let place = |mat: Option<Mat>| mat.map_or((0, 0), |mat| (mat.at as u32, mat.stride as u32));
    let ((b_at, b_stride), (s_at, s_stride)) = (place(factors.map(|f| f.0)), place(factors.map(|f| f.1)));
    let (at, stride) = place(Some(a));
    Params { rows: rows as u32, width: width as u32, at, stride, b_at, b_stride, s_at, s_stride }
}
