//! The coefficient of each token of retained answers: the term that keeps a model as it was.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};
use crate::loss::Retain;

params!(Params for ["retain"]; first: u32, rows: u32, kl: u32, scale: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// The tensors of a batch's retain term.
pub struct Batch<'a> {
    /// `(R, 4)`: source token, target id, sequence, 0.
    pub predict: &'a Tensor,
    /// `(S, 2)`: first and end row of each sequence.
    pub rows: &'a Tensor,
    /// `(3, R)`: log-probability, log-sum-exp and entropy of each token; only the first is read here.
    pub stats: &'a Tensor,
    /// `(R)`: log-probability under the model before training.
    pub start: &'a Tensor,
    /// `(R)`, written: dL/d(log-probability of the token).
    pub coefficient: &'a Tensor,
}

/// Records the coefficients of `rows` rows from `first` on: those of whole answers. `scale` is the term's
/// weight divided by the number of retained answers in the optimizer batch.
pub fn forward(
    rec: &mut Recorder,
    retain: Retain,
    batch: Batch,
    (first, rows): (usize, usize),
    scale: f64,
) -> Result<()> {
    let end = first + rows;
    let tensors = [
        ("predict", batch.predict, 4 * end),
        ("rows", batch.rows, 2),
        ("stats", batch.stats, end),
        ("start", batch.start, end),
        ("coefficient", batch.coefficient, end),
    ];
    check("retain", &tensors)?;
    let kl = (retain == Retain::Kl).into();
    let params = Params { first: first as u32, rows: rows as u32, kl, scale: scale as f32 };
    let shader = kernel(rec.gpu(), "retain");
    rec.dispatch(&shader, &params, &tensors.map(|(_, tensor, _)| tensor), groups_of_64(rows), rows as f64);
    Ok(())
}
