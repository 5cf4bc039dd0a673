//! Inverted dropout with a counter-based mask: the mask is not stored; the backward pass recomputes it.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["dropout"]; count: u32, stream: u32, step: u32, seed: u32, p: f32, scale: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Identifies a mask: there is one for each adapter, micro-batch and run.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// Probability of dropping an element, in [0, 1).
    pub p: f32,
    /// The number of the adapter in the model.
    pub stream: u32,
    /// The number of the micro-batch in the run.
    pub step: u32,
    /// The run's seed.
    pub seed: u32,
}

fn record(rec: &mut Recorder, variant: &str, mask: Mask, x: &Tensor, y: &Tensor, count: usize) -> Result<()> {
    check("dropout", &[("x", x, count), ("y", y, count)])?;
    let Mask { p, stream, step, seed } = mask;
    let params = Params { count: count as u32, stream, step, seed, p, scale: 1.0 / (1.0 - p) };
    let shader = kernel(rec.gpu(), variant);
    rec.dispatch(&shader, &params, &[x, y], groups_of_64(count), 30.0 * count as f64);
    Ok(())
}

/// `y = mask * x`, both `(count)`.
pub fn forward(rec: &mut Recorder, mask: Mask, x: &Tensor, y: &Tensor, count: usize) -> Result<()> {
    record(rec, "dropout", mask, x, y, count)
}

/// `dx += mask * dy`, both `(count)`.
pub fn backward(rec: &mut Recorder, mask: Mask, dy: &Tensor, dx: &Tensor, count: usize) -> Result<()> {
    record(rec, "dropout ACCUMULATE", mask, dy, dx, count)
}
