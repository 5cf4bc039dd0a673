//! Anchors: the model's own answers to each prompt, sampled under the safety instruction and scored without
//! it.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::gpu::Gpu;
use crate::model::Decoder;
use crate::nn::Pass;
use crate::sample::Settings;
use crate::sample::{self, Answer, Looked, Request, Room};

/// One self-sampled answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its tokens; the last is an end token unless it was cut at the length limit.
    pub ids: Vec<u32>,
    /// Whether it ended by itself.
    pub ended: bool,
    /// The step before which it was drawn.
    pub step: usize,
}

/// What became of the samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorCounts {
    /// Answers drawn.
    pub drawn: usize,
    /// Answers equal to an earlier one of the same prompt. They stay: the mean over samples is an estimate,
    /// and leaving repeats out would bias it.
    pub duplicates: usize,
    /// Answers without a word; drawn again.
    pub empty: usize,
    /// Answers cut at the length limit; they have no end-of-turn token.
    pub cut: usize,
    /// Prompts that got fewer than K anchors because their samples stayed empty.
    pub short: usize,
}

/// Anchors of a prompt, and when they were drawn.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pool {
    /// At most K.
    pub anchors: Vec<Anchor>,
    /// How often the pool was drawn: part of the random counters.
    pub generation: u32,
    /// The step before which it was drawn.
    pub step: usize,
    /// How often what was missing was drawn in this generation: once, and again where samples were empty.
    pub rounds: u32,
    /// Samples drawn in this generation, empty ones included: part of the random counters.
    pub samples: u32,
}

impl Pool {
    /// The anchors' tokens.
    pub fn ids(&self) -> impl Iterator<Item = &[u32]> + Clone {
        self.anchors.iter().map(|anchor| anchor.ids.as_slice())
    }

    /// Whether samples are still to be drawn for it, to have `k`.
    pub(super) fn lacks(&self, k: usize) -> bool {
        self.anchors.len() < k && self.rounds <= RETRIES
    }

    /// Empties the pool, to be drawn anew before `step`.
    pub(super) fn renew(&mut self, step: usize) {
        *self = Self { generation: self.generation + 1, step, ..Self::default() };
    }

    /// Takes the answers of a round over.
    fn take(&mut self, answers: Vec<Answer>, k: usize, counts: &mut AnchorCounts) {
        self.rounds += 1;
        self.samples += answers.len() as u32;
        for Answer { ids, ended } in answers {
            counts.drawn += 1;
            if ids.len() == usize::from(ended) {
                counts.empty += 1;
                continue;
            }
            counts.duplicates += usize::from(self.anchors.iter().any(|a| a.ids == ids));
            counts.cut += usize::from(!ended);
            self.anchors.push(Anchor { ids, ended, step: self.step });
        }
        counts.short += usize::from(self.anchors.len() < k && self.rounds > RETRIES);
    }
}

/// Random counters of one generation of a pool: draws and their repeats.
const COUNTERS: u32 = 4096;
/// How often empty samples are drawn again.
const RETRIES: u32 = 3;

/// A prompt whose pool is to be drawn.
pub(super) struct Draw<'a> {
    /// The pool's place.
    pub pool: usize,
    /// The prompt's number among all: part of the random counters.
    pub index: u32,
    /// The tokens to sample from.
    pub prompt: &'a [u32],
}

/// Told answers and tokens since its last call, and the pools and counts as they are.
pub(super) type Drawing<'a> = &'a mut dyn FnMut(usize, usize, &[Pool], &AnchorCounts) -> Result<()>;

/// What draws: the model, and in which buffers.
pub(super) struct Sampler<'a> {
    pub room: Room,
    pub gpu: &'a Gpu,
    pub decoder: &'a Decoder,
    pub pass: Pass<'a>,
    pub settings: Settings,
}

impl Sampler<'_> {
    /// Fills the pools of `draws` up to `k` anchors. A pool changes when a round of its samples is whole;
    /// `each` is then told the answers and tokens since its last call, and the pools and counts as they are.
    /// So what was drawn before an error stays.
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
                for (request, answers) in looked.complete {
                    pools[missing[request].pool].take(answers, k, counts);
                }
                each(looked.answers, looked.tokens, pools, counts)
            };
            let Self { room, gpu, decoder, pass, settings } = self;
            sample::draw(*room, gpu, decoder, *pass, &requests, settings, &mut look).await?;
        }
    }
}
