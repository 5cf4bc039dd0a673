//! Multiply-adds in registers. They measure an adapter's peak arithmetic rate, to which `aweigh bench`
//! compares the rates of other kernels.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["fma_peak"]; count: u32, rounds: u32, a: f32, b: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Chains of an invocation, and their steps in a round.
const CHAINS: f64 = 16.0;
const STEPS: f64 = 16.0;

/// Records `rounds` rounds of value·a + b in each of `count` invocations, which write the sums of their
/// chains to out `(count)`. Returns the number of floating-point operations: two for each multiply-add.
pub fn forward(
    rec: &mut Recorder,
    out: &Tensor,
    count: usize,
    rounds: u32,
    (a, b): (f32, f32),
) -> Result<f64> {
    check("fma_peak", &[("out", out, count)])?;
    let shader = kernel(rec.gpu(), "fma_peak");
    let operations = 2.0 * CHAINS * STEPS * count as f64 * f64::from(rounds);
    let params = Params { count: count as u32, rounds, a, b };
    rec.dispatch(&shader, &params, &[out], groups_of_64(count), operations);
    Ok(operations)
}
