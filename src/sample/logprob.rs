//! Log-probs of sampled tokens, for those who ask for them.

/// The most alternatives whose log-probs can be asked for, as in OpenAI's protocol.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// A token's log-prob, under the model's distribution (temperature 1), and those of the most likely tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The sampled token's log-prob, in nats.
    pub logprob: f32,
    /// The most likely tokens with their log-probs, in descending order; of equal ones the lowest id comes
    /// first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// The log-prob of `id` and those of the `top` most likely tokens, from the logits of one row.
    pub(super) fn of(logits: &[f32], id: u32, top: usize) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
        let of = |id: u32| (f64::from(logits[id as usize] - most) - sum.ln()) as f32;
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        if let Some(last) = top.min(ids.len()).checked_sub(1) {
            ids.select_nth_unstable_by(last, order);
        }
        ids.truncate(top);
        ids.sort_unstable_by(order);
        Self { logprob: of(id), top: ids.into_iter().map(|id| (id, of(id))).collect() }
    }
}
