//! Samples tokens from logits on the device, with the filters of Hugging Face's logits processors in the same
//! order.

use super::{by_rows, check, params};
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};
use crate::{Error, Result};

params!(Params for ["sample"];
    rows: u32, vocab: u32, seed: u32, top_k: u32,
    top_p: f32, temperature: f32, penalty: f32, column: u32,
    columns: u32, end_count: u32, max_new: u32, seen_words: u32,
    ends: [u32; 4], more_ends: [u32; 4]);

/// Entry in a row's history for a step after the row had already ended.
pub const NONE: u32 = u32::MAX;
/// The most end tokens that a model may have.
pub const MAX_ENDS: usize = 8;

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Sampling settings; names and meanings as in Hugging Face's `GenerationConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens with at least this total probability; 1 keeps all.
    pub top_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// The most tokens to sample per answer.
    pub max_new_tokens: u32,
    /// The random seed.
    pub seed: u32,
    /// Tokens that end an answer; at most [`MAX_ENDS`].
    pub ends: Vec<u32>,
}

/// The rows being decoded, updated in place.
pub struct Rows<'a> {
    /// `(B, V)`
    pub logits: &'a Tensor,
    /// `(B, ceil(V / 32))`: a bit for each id, set if it is in the row's prompt or answer.
    pub seen: &'a Tensor,
    /// `(B, 4)`: prompt, sample, step, finished.
    pub state: &'a Tensor,
    /// `(B, 4)`: id, position, slot, unused.
    pub tokens: &'a Tensor,
    /// `(B, 4)`: attention's key ranges.
    pub ranges: &'a Tensor,
    /// `(B, columns)`: the ids sampled; this call writes one column.
    pub history: &'a Tensor,
}

/// Samples one token for each of `count` rows into `column` of the history, and advances the rows.
pub fn forward(
    rec: &mut Recorder,
    settings: &SamplingParams,
    rows: Rows,
    (count, vocab): (usize, usize),
    (column, columns): (usize, usize),
) -> Result<()> {
    let words = vocab.div_ceil(32);
    let tensors = [
        ("logits", rows.logits, count * vocab),
        ("seen", rows.seen, count * words),
        ("state", rows.state, 4 * count),
        ("tokens", rows.tokens, 4 * count),
        ("ranges", rows.ranges, 4 * count),
        ("history", rows.history, count * columns),
    ];
    check("sample", &tensors)?;
    if settings.ends.len() > MAX_ENDS {
        let fix = "list fewer end-of-turn tokens in generation_config.json";
        return Err(Error::input(
            "eos_token_id",
            format!("at most {MAX_ENDS} ids"),
            settings.ends.len(),
            fix,
        ));
    }
    let mut ends = [NONE; MAX_ENDS];
    ends[..settings.ends.len()].copy_from_slice(&settings.ends);
    let [a, b, c, d, e, f, g, h] = ends;
    let params = Params {
        rows: count as u32,
        vocab: vocab as u32,
        seed: settings.seed,
        // As many as there are, or more: all.
        top_k: if (settings.top_k as usize) < vocab { settings.top_k } else { 0 },
        top_p: settings.top_p,
        temperature: settings.temperature,
        penalty: settings.repetition_penalty,
        column: column as u32,
        columns: columns as u32,
        end_count: settings.ends.len() as u32,
        max_new: settings.max_new_tokens,
        seen_words: words as u32,
        ends: [a, b, c, d],
        more_ends: [e, f, g, h],
    };
    let (variant, groups) = by_rows(rec, "sample", count, vocab);
    let shader = kernel(rec.gpu(), &variant);
    let bindings = tensors.map(|(_, tensor, _)| tensor);
    rec.dispatch(&shader, &params, &bindings, groups, 60.0 * (count * vocab) as f64);
    Ok(())
}
