//! Samples tokens from logits on the device, with the filters of Hugging Face's logits processors in the same
//! order.

use super::{by_rows, check, params};
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};
use crate::{Error, Result};

params!(Params for ["sample"];
    ends: [u32; 4], more_ends: [u32; 4],
    rows: u32, vocab: u32, column: u32, columns: u32,
    end_count: u32, seen_words: u32, needs: u32);

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

impl SamplingParams {
    /// Words of a row's settings on the device.
    pub(crate) const WORDS: usize = 8;

    /// A row's settings as the kernel reads them, for a vocabulary of this size. The end tokens are not among
    /// them: all rows share them.
    pub(crate) fn words(&self, vocab: usize) -> [u32; Self::WORDS] {
        // Without top-k all are kept.
        let top_k = if self.top_k == 0 { vocab as u32 } else { self.top_k.min(vocab as u32) };
        let (top_p, temperature) = (self.top_p.to_bits(), self.temperature.to_bits());
        let penalty = self.repetition_penalty.to_bits();
        [self.seed, top_k, top_p, temperature, penalty, self.max_new_tokens, 0, 0]
    }
}

/// What the settings of all rows of a step have in common, and what any of them needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    ends: Vec<u32>,
    /// A bit for each of greedy rows, rows that are drawn, top-k and top-p.
    needs: u32,
}

impl Common {
    /// Of rows with these settings, of which the first has the end tokens of all.
    pub fn of<'a>(settings: impl IntoIterator<Item = &'a SamplingParams>) -> Self {
        let mut all = Self { ends: Vec::new(), needs: 0 };
        for (i, own) in settings.into_iter().enumerate() {
            if i == 0 {
                all.ends.clone_from(&own.ends);
            }
            let drawn = own.temperature != 0.0;
            let needs = [!drawn, drawn, drawn && own.top_k > 0, drawn && own.top_p < 1.0];
            all.needs |= needs.iter().enumerate().map(|(bit, need)| u32::from(*need) << bit).sum::<u32>();
        }
        all
    }
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
    /// `(B, 8)`: each row's own settings, as words; read only.
    pub settings: &'a Tensor,
}

/// Samples one token for each of `count` rows into `column` of the history, and advances the rows. `common`
/// is [`Common::of`] the settings in the table.
pub fn forward(
    rec: &mut Recorder,
    common: &Common,
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
        ("settings", rows.settings, count * SamplingParams::WORDS),
    ];
    check("sample", &tensors)?;
    let ends = &common.ends;
    if ends.len() > MAX_ENDS {
        let fix = "list fewer end-of-turn tokens in generation_config.json";
        return Err(Error::input("eos_token_id", format!("at most {MAX_ENDS} ids"), ends.len(), fix));
    }
    let mut all = [NONE; MAX_ENDS];
    all[..ends.len()].copy_from_slice(ends);
    let [a, b, c, d, e, f, g, h] = all;
    let params = Params {
        ends: [a, b, c, d],
        more_ends: [e, f, g, h],
        rows: count as u32,
        vocab: vocab as u32,
        column: column as u32,
        columns: columns as u32,
        end_count: ends.len() as u32,
        seen_words: words as u32,
        needs: common.needs,
    };
    let (variant, groups) = by_rows(rec, "sample", count, vocab);
    let shader = kernel(rec.gpu(), &variant);
    let bindings = tensors.map(|(_, tensor, _)| tensor);
    rec.dispatch(&shader, &params, &bindings, groups, 60.0 * (count * vocab) as f64);
    Ok(())
}
