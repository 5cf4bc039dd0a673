//! Anchors: the model's own answers to each prompt, sampled with the safety instruction and worked examples
//! in front of it and scored without them.

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use crate::Result;
use crate::data::Example;
use crate::gpu::Gpu;
use crate::model::Decoder;
use crate::nn::Pass;
use crate::sample::SamplingParams;
use crate::sample::{self, Answer, Looked, Request, Room};

/// One answer that the model sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// Token ids. The last is an end token, unless the answer was cut at the length limit.
    pub ids: Vec<u32>,
    /// Whether it ended with an end token.
    pub ended: bool,
    /// Optimizer steps done when it was sampled.
    pub step: usize,
    /// Its weight in the loss, relative to the other anchors of its prompt.
    #[serde(default = "whole")]
    pub weight: f32,
}

fn whole() -> f32 {
    1.0
}

/// Counts of the sampled answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorCounts {
    /// Answers sampled.
    pub drawn: usize,
    /// Answers equal to an earlier one of the same prompt. They are kept: the loss estimates a mean over
    /// samples, and dropping repeats would bias it.
    pub duplicates: usize,
    /// Answers without a token before the end token; they are sampled again.
    pub empty: usize,
    /// Answers that `anchor_filter` refused; the missing ones are sampled again.
    pub filtered: usize,
    /// Answers cut at the length limit; they have no end token.
    pub cut: usize,
    /// Prompts that got fewer than K anchors, because their samples stayed empty or were refused by
    /// `anchor_filter`.
    pub short: usize,
}

/// The anchors of one prompt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pool {
    /// At most K.
    pub anchors: Vec<Anchor>,
    /// Number of times that the pool was filled: part of the random counters.
    pub generation: u32,
    /// Optimizer steps done when it was sampled.
    pub step: usize,
    /// Sampling rounds of this generation: one, and more if samples were empty or refused by the filter.
    pub rounds: u32,
    /// Samples in this generation, including those that did not become anchors: part of the random counters.
    pub samples: u32,
}

impl Pool {
    /// The anchors' tokens.
    pub fn ids(&self) -> impl Iterator<Item = &[u32]> + Clone {
        self.anchors.iter().map(|anchor| anchor.ids.as_slice())
    }

    /// The first `k` of the example's own anchors; an empty pool without any, and without a flagged answer.
    pub(super) fn given(example: &Example, ends: &[u32], k: usize) -> Self {
        let k = if example.negative_ids.is_some() { k } else { 0 };
        let anchor = |ids: &Vec<u32>| {
            let ended = ids.last().is_some_and(|last| ends.contains(last));
            Anchor { ids: ids.clone(), ended, step: 0, weight: 1.0 }
        };
        Self { anchors: example.anchor_ids.iter().take(k).map(anchor).collect(), ..Self::default() }
    }

    /// Whether it needs more samples to reach `k` anchors.
    pub(super) fn lacks(&self, k: usize) -> bool {
        self.anchors.len() < k && self.rounds <= RETRIES
    }

    /// Empties the pool but for its first `stored` anchors from before the first step, to be sampled again
    /// after `step` optimizer steps.
    pub(super) fn renew(&mut self, step: usize, stored: usize) {
        let mut anchors = std::mem::take(&mut self.anchors);
        anchors.retain(|anchor| anchor.step == 0);
        anchors.truncate(stored);
        *self = Self { anchors, generation: self.generation + 1, step, ..Self::default() };
    }

    /// Adds those answers of one sampling round that `keeps` accepts.
    fn take(
        &mut self,
        answers: Vec<Answer>,
        k: usize,
        counts: &mut AnchorCounts,
        keeps: &dyn Fn(&[u32]) -> Result<bool>,
    ) -> Result<()> {
        self.rounds += 1;
        self.samples += answers.len() as u32;
        for Answer { ids, ended } in answers {
            counts.drawn += 1;
            if ids.len() == usize::from(ended) {
                counts.empty += 1;
                continue;
            }
            if !keeps(&ids)? {
                counts.filtered += 1;
                continue;
            }
            counts.duplicates += usize::from(self.anchors.iter().any(|a| a.ids == ids));
            counts.cut += usize::from(!ended);
            self.anchors.push(Anchor { ids, ended, step: self.step, weight: 1.0 });
        }
        counts.short += usize::from(self.anchors.len() < k && self.rounds > RETRIES);
        Ok(())
    }
}

/// Random counters reserved for one generation of a pool: its samples and their retries.
const COUNTERS: u32 = 4096;
/// Number of times that samples which were empty, or refused by the filter, are sampled again.
pub(super) const RETRIES: u32 = 3;

/// A prompt whose pool is to be filled.
pub(super) struct Draw<'a> {
    /// Index of the pool.
    pub pool: usize,
    /// Number of the prompt among training and held-out prompts: part of the random counters.
    pub index: u32,
    /// Token ids of the prompt to sample from.
    pub prompt: &'a [u32],
}

/// What was sampled since the last call of [`Drawing`].
#[derive(Default)]
pub(super) struct Drawn {
    /// Answers that ended.
    pub answers: usize,
    /// Answers that became anchors, once all of their prompt's had ended.
    pub anchors: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Progress callback, with the current pools and counts.
pub(super) type Drawing<'a> = &'a mut dyn FnMut(Drawn, &[Pool], &AnchorCounts) -> Result<()>;

/// Samples anchors: the model, its forward pass, the buffer sizes and the sampling settings.
pub(super) struct Sampler<'a> {
    pub room: Room,
    pub gpu: &'a Gpu,
    pub decoder: &'a Decoder,
    pub pass: Pass<'a>,
    pub settings: SamplingParams,
    pub reader: Option<&'a Reader>,
}

impl Sampler<'_> {
    /// Fills the pools of `draws` up to `k` anchors. A pool is updated when all samples of its round are
    /// finished, so anchors sampled before an error are kept. `each` is called every few tokens.
    pub async fn fill<'d>(
        &self,
        pools: &mut [Pool],
        draws: &[Draw<'d>],
        k: usize,
        counts: &mut AnchorCounts,
        each: Drawing<'_>,
    ) -> Result<()> {
        for draw in draws {
            let pool = &mut pools[draw.pool];
            pool.generation = pool.generation.max(1);
        }
        loop {
            let missing: Vec<&Draw> = draws.iter().filter(|draw| pools[draw.pool].lacks(k)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            let request = |draw: &&Draw<'d>| {
                let pool = &pools[draw.pool];
                let first_sample = (pool.generation - 1) * COUNTERS + pool.samples;
                let samples = k - pool.anchors.len();
                Request { prompt: draw.prompt, first_sample, samples, index: draw.index }
            };
            let requests: Vec<Request> = missing.iter().map(request).collect();
            let mut look = |looked: Looked| {
                let mut drawn = Drawn { answers: looked.answers, tokens: looked.tokens, ..Drawn::default() };
                for (request, answers) in looked.complete {
                    let Draw { pool, prompt, .. } = missing[request];
                    let keeps = |ids: &[u32]| self.reader.map_or(Ok(true), |r| r.keeps(prompt, ids));
                    let pool = &mut pools[*pool];
                    let before = pool.anchors.len();
                    pool.take(answers, k, counts, &keeps)?;
                    drawn.anchors += pool.anchors.len() - before;
                }
                each(drawn, pools, counts)
            };
            let Self { room, gpu, decoder, pass, settings, .. } = self;
            sample::draw(*room, gpu, decoder, *pass, &requests, settings, &mut look).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    #[test]
    fn own_anchors_belong_to_a_flagged_answer() {
        let mut example = Example {
            negative_ids: Some(vec![7]),
            anchor_ids: vec![vec![5, 2], vec![6], vec![8, 2]],
            ..Example::asking(1, 0, Prompt::Text(String::new()), vec![1])
        };
        let pool = Pool::given(&example, &[2], 2);
        let found: Vec<(&[u32], bool)> = pool.anchors.iter().map(|a| (&a.ids[..], a.ended)).collect();
        assert_eq!(found, [(&[5, 2][..], true), (&[6][..], false)]);
        // A held-out row with a good answer only is for the perplexity.
        (example.negative_ids, example.chosen_ids) = (None, Some(vec![7]));
        assert!(Pool::given(&example, &[2], 2).anchors.is_empty());
    }
}
