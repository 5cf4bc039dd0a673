//! Multiplies each row by its own coefficient.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["row_scale"]; rows: u32, width: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// `x[r, :] *= coefficient[r]`: x `(rows, width)`, coefficient `(rows)`.
pub fn forward(
    rec: &mut Recorder,
    coefficient: &Tensor,
    x: &Tensor,
    (rows, width): (usize, usize),
) -> Result<()> {
    let count = rows * width;
    check("row_scale", &[("coefficient", coefficient, rows), ("x", x, count)])?;
    let params = Params { rows: rows as u32, width: width as u32 };
    let shader = kernel(rec.gpu(), "row_scale");
    rec.dispatch(&shader, &params, &[coefficient, x], groups_of_64(count), count as f64);
    Ok(())
}
