//! The global norm of the gradients, in two passes with a fixed order of summation, and the clipping factor.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["sum_squares"]; count: u32, first: u32);
params!(ClipParams for ["clip_scale"]; partials: u32, max_norm: f32);

/// Partial sums per tensor.
pub const PARTIALS: usize = 1024;

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block(), ClipParams::block()]
}

/// partials `(n, PARTIALS)`: row `index` = partial sums of the squares of g `(count)`.
pub fn forward(rec: &mut Recorder, g: &Tensor, partials: &Tensor, index: usize, count: usize) -> Result<()> {
    check("sum_squares", &[("g", g, count), ("partials", partials, (index + 1) * PARTIALS)])?;
    let shader = kernel(rec.gpu(), "sum_squares");
    let params = Params { count: count as u32, first: (index * PARTIALS) as u32 };
    rec.dispatch(&shader, &params, &[g, partials], groups_of_64(PARTIALS), 2.0 * count as f64);
    Ok(())
}

/// result `(2)` = the norm over `rows` rows of partials, and the clipping factor. The factor is min(1,
/// max_norm / (norm + 1e-6)), as in PyTorch's `clip_grad_norm_`; 1 when max_norm is 0; -1 when the norm is
/// NaN or infinite.
pub fn clip_scale(
    rec: &mut Recorder,
    partials: &Tensor,
    result: &Tensor,
    rows: usize,
    max_norm: f32,
) -> Result<()> {
    check("clip_scale", &[("partials", partials, rows * PARTIALS), ("result", result, 2)])?;
    let shader = kernel(rec.gpu(), "clip_scale");
    let params = ClipParams { partials: (rows * PARTIALS) as u32, max_norm };
    rec.dispatch(&shader, &params, &[partials, result], 1, (rows * PARTIALS) as f64);
    Ok(())
}
