//! Sums of log-probabilities and entropies over each sequence.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["sequence_sum"]; sequences: u32, total: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// spans `(S, 2)` (first row, end row), stats `(3, R)` -> sums `(2, S)`: log-prob and entropy.
pub fn forward(
    rec: &mut Recorder,
    spans: &Tensor,
    stats: &Tensor,
    sums: &Tensor,
    sequences: usize,
    total: usize,
) -> Result<()> {
    let tensors =
        [("spans", spans, 2 * sequences), ("stats", stats, 3 * total), ("sums", sums, 2 * sequences)];
    check("sequence_sum", &tensors)?;
    let shader = kernel(rec.gpu(), "sequence_sum");
    let params = Params { sequences: sequences as u32, total: total as u32 };
    rec.dispatch(&shader, &params, &[spans, stats, sums], groups_of_64(sequences), total as f64);
    Ok(())
}
