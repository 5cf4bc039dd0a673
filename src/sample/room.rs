//! How requests are split into waves that are decoded together, and the sizes of a sampler's buffers.

use crate::gpu::Memory;
use crate::model::{DecoderConfig, chunk_rows};

/// The most prompt tokens that are prefilled together, unless one prompt alone has more.
const PREFILL_TOKENS: usize = 1536;
/// The most prompt tokens whose keys are in the cache at once, unless one prompt alone has more. It is larger
/// than the number that is prefilled, because the keys of a shared beginning are copied.
const CACHED_TOKENS: usize = 4 * PREFILL_TOKENS;
/// The fewest tokens of a shared beginning that are worth a forward pass of their own.
const LEAST_SHARED: usize = 16;

/// Consecutive samples of a request.
pub(super) struct Piece {
    pub request: usize,
    pub first: usize,
    pub samples: usize,
}

/// The number of tokens with which all prompts begin, and which are computed once for all of them. The last
/// token of a prompt is not among them: it predicts the answer's first token.
pub(crate) fn shared_beginning<'a>(mut prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = prompts.next() else { return 0 };
    let mut count = 1;
    let shared = prompts.fold(first.len().saturating_sub(1), |shared, prompt| {
        count += 1;
        let most = shared.min(prompt.len().saturating_sub(1));
        first[..most].iter().zip(prompt).take_while(|(a, b)| a == b).count()
    });
    if count > 1 && shared >= LEAST_SHARED { shared } else { 0 }
}

/// The most that a wave may have, of each kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    rows: usize,
    /// Prompt tokens after the shared beginning.
    own: usize,
    /// All prompt tokens.
    prompt: usize,
}

/// Splits requests, given as (prompt tokens, samples), into waves that are decoded together. Requests keep
/// their order. A wave takes requests while they fit into `limits.rows` and, after its first one, into the
/// other limits. A request with more samples than `limits.rows` is split into pieces.
pub(super) fn waves(requests: &[(usize, usize)], shared: usize, limits: Limits) -> Vec<Vec<Piece>> {
    let mut waves: Vec<Vec<Piece>> = Vec::new();
    let mut used = Limits { rows: 0, own: 0, prompt: 0 };
    for (request, &(prompt, all)) in requests.iter().enumerate() {
        for first in (0..all).step_by(limits.rows) {
            let samples = limits.rows.min(all - first);
            let piece = Piece { request, first, samples };
            let alone = Limits { rows: samples, own: prompt - shared, prompt };
            used = used.and(alone);
            match waves.last_mut().filter(|_| used.within(limits)) {
                Some(wave) => wave.push(piece),
                None => {
                    used = alone;
                    waves.push(vec![piece]);
                }
            }
        }
    }
    waves
}

impl Limits {
    fn and(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, own: self.own + other.own, prompt: self.prompt + other.prompt }
    }

    fn within(self, limits: Self) -> bool {
        self.rows <= limits.rows && self.own <= limits.own && self.prompt <= limits.prompt
    }
}

/// Sizes of a sampler's buffers: the most rows, prompt tokens and new tokens that a wave may have. Buffers
/// that are large enough for some requests are large enough for any part of them, in any number of waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// The most answers that are decoded together.
    pub rows: usize,
    /// Tokens with which all prompts begin.
    pub shared: usize,
    /// The most prompt tokens of a wave after the shared beginning.
    pub own_tokens: usize,
    /// The most prompt tokens of a wave.
    pub prompt_tokens: usize,
    /// The most tokens of an answer.
    pub max_new: usize,
}

impl Room {
    /// The room that requests, given as (prompt tokens, samples), need for up to `max_new` new tokens, with
    /// at most `most_rows` answers decoded together. All prompts begin with the same `shared` tokens.
    pub fn of(
        memory: &Memory,
        config: &DecoderConfig,
        requests: &[(usize, usize)],
        shared: usize,
        max_new: usize,
        most_rows: usize,
    ) -> Self {
        // A layer's keys must fit into one binding, and the logits of all rows into one chunk.
        let slots = memory.max_binding() as usize / (4 * config.kv_heads * config.head_dim);
        let most_prompt = if shared == 0 { PREFILL_TOKENS } else { CACHED_TOKENS };
        let cached = slots.saturating_sub(most_prompt) / max_new.max(1);
        let rows = chunk_rows(config.vocab, most_rows).min(most_rows).min(cached).max(1);
        let mut room = Self { rows: 1, shared, own_tokens: 1, prompt_tokens: 1, max_new };
        for wave in waves(requests, shared, Limits { rows, own: PREFILL_TOKENS, prompt: most_prompt }) {
            room.rows = room.rows.max(wave.iter().map(|piece| piece.samples).sum());
            let prompt_tokens: usize = wave.iter().map(|piece| requests[piece.request].0).sum();
            room.prompt_tokens = room.prompt_tokens.max(prompt_tokens);
            room.own_tokens = room.own_tokens.max(prompt_tokens - shared * wave.len());
        }
        room
    }

    /// The limits of a wave in these buffers.
    pub(super) fn limits(&self) -> Limits {
        Limits { rows: self.rows, own: self.own_tokens, prompt: self.prompt_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_their_beginning_but_not_their_last_token() {
        let header: Vec<u32> = (0..20).collect();
        let prompt = |own: &[u32]| [&header[..], own].concat();
        let shared = |prompts: &[Vec<u32>]| shared_beginning(prompts.iter().map(Vec::as_slice));
        assert_eq!(shared(&[prompt(&[50, 51]), prompt(&[52]), prompt(&[50, 53, 54])]), 20);
        assert_eq!(shared(&[prompt(&[50, 51, 52]), prompt(&[50, 51, 53])]), 22);
        // A prompt that is the beginning of another keeps its last token to itself.
        assert_eq!(shared(&[header.clone(), prompt(&[50])]), 19);
        assert_eq!(shared(&[header.clone(), header.clone()]), 19);
        // One prompt alone, and a beginning that is too short.
        assert_eq!(shared(&[prompt(&[50])]), 0);
        assert_eq!(shared(&[vec![1, 2, 3], vec![1, 2, 4]]), 0);
        assert_eq!(shared(&[]), 0);
    }

    #[test]
    fn a_wave_keeps_to_its_limits() {
        let of = |requests: &[(usize, usize)], shared| {
            let limits = Limits { rows: 4, own: 30, prompt: 50 };
            let all = waves(requests, shared, limits);
            all.iter().map(|wave| wave.iter().map(|p| (p.request, p.first, p.samples)).collect()).collect()
        };
        let found: Vec<Vec<(usize, usize, usize)>> = of(&[(10, 2), (10, 1), (10, 2), (40, 5)], 0);
        assert_eq!(found, [vec![(0, 0, 2), (1, 0, 1)], vec![(2, 0, 2)], vec![(3, 0, 4)], vec![(3, 4, 1)]]);
        // With 8 of their tokens shared, prompts count for less, up to the size of the cache.
        let found: Vec<Vec<(usize, usize, usize)>> = of(&[(20, 1), (20, 1), (20, 1)], 8);
        assert_eq!(found, [vec![(0, 0, 1), (1, 0, 1)], vec![(2, 0, 1)]]);
    }
}
