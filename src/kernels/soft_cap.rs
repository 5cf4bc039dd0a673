//! The soft cap of Gemma 2's logits (2408.00118).

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["soft_cap"]; count: u32, cap: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// `x = cap · tanh(x / cap)`, in place, of the first `count` elements.
pub fn forward(rec: &mut Recorder, x: &Tensor, count: usize, cap: f32) -> Result<()> {
    check("soft_cap", &[("x", x, count)])?;
    let shader = kernel(rec.gpu(), "soft_cap");
    let params = Params { count: count as u32, cap };
    rec.dispatch(&shader, &params, &[x], groups_of_64(count), 8.0 * count as f64);
    Ok(())
}
