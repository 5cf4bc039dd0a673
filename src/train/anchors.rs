//! Anchors: the model's own answers to each prompt, sampled under the safety instruction and scored without it.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::AnchorConfig;
use crate::data::Example;
use crate::gpu::Gpu;
use crate::kernels::sample::Settings;
use crate::model::Decoder;
use crate::nn::Pass;
use crate::sample::{self, Request, Room};

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
    /// Answers equal to an earlier one of the same prompt. They stay: the mean over samples is an estimate, and leaving
    /// repeats out would bias it.
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
}

impl Pool {
    /// The anchors' tokens.
    pub fn ids(&self) -> impl Iterator<Item = &[u32]> + Clone {
        self.anchors.iter().map(|anchor| anchor.ids.as_slice())
    }
}

/// Random counters of one generation of a pool: draws and their repeats.
const COUNTERS: u32 = 4096;
/// How often empty samples are drawn again.
const RETRIES: usize = 3;

/// The sampler's settings.
pub fn settings(config: &AnchorConfig, seed: u32, ends: &[u32]) -> Settings {
    Settings {
        temperature: config.temperature as f32,
        top_k: config.top_k as u32,
        top_p: config.top_p as f32,
        repetition_penalty: config.repetition_penalty as f32,
        max_new_tokens: config.max_new_tokens as u32,
        seed,
        ends: ends.to_vec(),
    }
}

/// A prompt whose pool is to be drawn: its number, its tokens, and the pool.
pub struct Draw<'a> {
    /// The prompt's number among all.
    pub index: u32,
    /// The tokens to sample from.
    pub prompt: &'a [u32],
    /// The pool to fill.
    pub pool: &'a mut Pool,
}

impl<'a> Draw<'a> {
    /// Of `example`, bare or with the instruction.
    pub fn new(index: usize, example: &'a Example, instructed: bool, pool: &'a mut Pool) -> Self {
        let prompt = if instructed { &example.sampling_ids } else { &example.prompt_ids };
        Self { index: index as u32, prompt, pool }
    }
}

/// Fills each pool of `draws` up to `k` anchors, in a sampler's buffers of `room`.
#[allow(clippy::too_many_arguments)]
pub(super) async fn draw(
    room: Room,
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    draws: &mut [Draw<'_>],
    k: usize,
    settings: &Settings,
    step: usize,
    progress: sample::Progress<'_>,
) -> Result<AnchorCounts> {
    let mut counts = AnchorCounts::default();
    for draw in draws.iter_mut() {
        draw.pool.step = step;
        draw.pool.generation += 1;
    }
    let mut used = vec![0u32; draws.len()];
    for _ in 0..=RETRIES {
        let missing: Vec<usize> = (0..draws.len()).filter(|&i| draws[i].pool.anchors.len() < k).collect();
        if missing.is_empty() {
            break;
        }
        let request = |&i: &usize| {
            let Draw { index, prompt, pool } = &draws[i];
            let first_sample = (pool.generation - 1) * COUNTERS + used[i];
            Request { prompt, first_sample, samples: k - pool.anchors.len(), index: *index }
        };
        let requests: Vec<Request> = missing.iter().map(request).collect();
        let answers =
            sample::generate_in(room, gpu, decoder, pass, &requests, settings, &mut *progress).await?;
        for (&i, answers) in missing.iter().zip(answers) {
            used[i] += answers.len() as u32;
            for answer in answers {
                counts.drawn += 1;
                let words = answer.ids.len() - usize::from(answer.ended);
                if words == 0 {
                    counts.empty += 1;
                    continue;
                }
                let pool = &mut draws[i].pool.anchors;
                counts.duplicates += usize::from(pool.iter().any(|a| a.ids == answer.ids));
                counts.cut += usize::from(!answer.ended);
                pool.push(Anchor { ids: answer.ids, ended: answer.ended, step });
            }
        }
    }
    counts.short = draws.iter().filter(|d| d.pool.anchors.len() < k).count();
    Ok(counts)
}

impl AnchorCounts {
    /// Adds another draw's counts.
    pub fn add(&mut self, other: &Self) {
        self.drawn += other.drawn;
        self.duplicates += other.duplicates;
        self.empty += other.empty;
        self.cut += other.cut;
        self.short += other.short;
    }
}
