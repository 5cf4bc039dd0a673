//! Log-probabilities of target tokens from a chunk of logits, and the gradient of the logits, which replaces
//! them.

use super::{by_rows, check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["log_prob", "log_prob_backward"];
    rows: u32, vocab: u32, first: u32, total: u32, cap: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// A chunk of the rows that predict response tokens.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// Rows in the chunk.
    pub rows: usize,
    /// Index of the chunk's first row among all rows.
    pub first: usize,
    /// Number of all rows, `R`.
    pub total: usize,
    /// Vocabulary size, `V`.
    pub vocab: usize,
    /// The soft cap that was applied to the logits, if any.
    pub cap: Option<f32>,
}

impl Chunk {
    fn params(&self) -> Params {
        let Chunk { rows, first, total, vocab, cap } = *self;
        let [rows, vocab, first, total] = [rows, vocab, first, total].map(|n| n as u32);
        Params { rows, vocab, first, total, cap: cap.unwrap_or(0.0) }
    }
}

/// logits `(rows, V)`, predict `(R, 4)` (source token, target id, sequence, unused) -> the chunk's part of
/// stats `(3, R)`: logp, lse, entropy.
pub fn forward(
    rec: &mut Recorder,
    logits: &Tensor,
    predict: &Tensor,
    stats: &Tensor,
    chunk: Chunk,
) -> Result<()> {
    let count = chunk.rows * chunk.vocab;
    let tensors =
        [("logits", logits, count), ("predict", predict, 4 * chunk.total), ("stats", stats, 3 * chunk.total)];
    check("log_prob", &tensors)?;
    let (variant, groups) = by_rows(rec, "log_prob", chunk.rows, chunk.vocab);
    let shader = kernel(rec.gpu(), &variant);
    rec.dispatch(&shader, &chunk.params(), &[logits, predict, stats], groups, 8.0 * count as f64);
    Ok(())
}

/// Replaces logits `(rows, V)` with their gradient: the row's coefficient, from `(R)`, × (one-hot − softmax).
/// Without coefficients it is the gradient of the log-probs themselves. With a cap it is the gradient of the
/// input of [`super::soft_cap`].
pub fn backward(
    rec: &mut Recorder,
    predict: &Tensor,
    stats: &Tensor,
    coefficient: Option<&Tensor>,
    logits: &Tensor,
    chunk: Chunk,
) -> Result<()> {
    let count = chunk.rows * chunk.vocab;
    let tensors =
        [("logits", logits, count), ("predict", predict, 4 * chunk.total), ("stats", stats, 3 * chunk.total)];
    check("log_prob_backward", &tensors)?;
    let (variant, bindings) = match coefficient {
        Some(coefficient) => ("log_prob_backward", vec![predict, stats, coefficient, logits]),
        None => ("log_prob_backward UNIT", vec![predict, stats, logits]),
    };
    let cap = if chunk.cap.is_some() { " CAP" } else { "" };
    let (wide, per_load) = if chunk.vocab.is_multiple_of(4) { (" VEC4", 4) } else { ("", 1) };
    let shader = kernel(rec.gpu(), &format!("{variant}{cap}{wide}"));
    rec.dispatch(&shader, &chunk.params(), &bindings, groups_of_64(count / per_load), 6.0 * count as f64);
    Ok(())
}
