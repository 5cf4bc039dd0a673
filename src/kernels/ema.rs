//! Exponential moving averages of parameters, for the reference kind `ema`.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["ema"]; vectors: u32, decay: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// `average = decay * average + (1 - decay) * value`, both `(count)`.
pub fn update(rec: &mut Recorder, value: &Tensor, average: &Tensor, count: usize, decay: f32) -> Result<()> {
    check("ema", &[("value", value, count), ("average", average, count)])?;
    let vectors = count.div_ceil(4);
    let shader = kernel(rec.gpu(), "ema");
    let params = Params { vectors: vectors as u32, decay };
    rec.dispatch(&shader, &params, &[value, average], groups_of_64(vectors), 3.0 * count as f64);
    Ok(())
}
