//! The memory plan: the GPU memory that a run will use, by phase and by purpose, computed before anything is
//! allocated; and the settings that would reduce it.
//!
//! A plan is not an estimate: the code that allocates a run's buffers runs on memory without a device
//! ([`Memory::on_paper`]), with the sizes of [`MaxBatches`], and the plan is read from its ledger.

use std::collections::BTreeMap;

use serde::Serialize;

use super::max_batches::MaxBatches;
use super::references::Reference;
use crate::Result;
use crate::config::RunConfig;
use crate::error::setting_to;
use crate::gpu::{DType, Memory, Purpose, Quantize, Tensor};
use crate::model::{Capacity, Decoder};
use crate::nn::{Arenas, Recompute};
use crate::optim::{AdamW, Optim, Optimizer};

/// The peak memory of one phase of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPhase {
    /// The phase: "sampling", "scoring", "evaluation", "answering",
    /// "resampling" or "training".
    pub name: &'static str,
    /// Peak bytes of all buffers.
    pub total: u64,
    /// Peak bytes by purpose.
    pub by_purpose: BTreeMap<Purpose, u64>,
}

/// The memory plan of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The run's phases, in order.
    pub phases: Vec<PlannedPhase>,
    /// The most answers decoded together.
    pub decoded_together: usize,
    /// The most answers decoded together at evaluations.
    answered_together: usize,
    /// The most answers under the harmful instruction decoded together.
    resampled_together: usize,
    /// Packed tokens of the largest batch of a step, for training or for scoring by moving references.
    pub step_tokens: usize,
    /// Packed tokens of the largest batch that is only scored.
    score_tokens: usize,
    /// Packed tokens of the largest group.
    largest_group: usize,
    /// Whether quantising the frozen weights would make them smaller.
    quantizable: bool,
    /// Whether the run trains a LoRA adapter on a frozen model.
    lora: bool,
}

/// A change of one setting that reduces memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// `--max-num-seqs`
    MaxNumSeqs(usize),
    /// `--max-tokens-per-batch`
    MaxTokensPerBatch(usize),
    /// `--recompute`
    Recompute(Recompute),
    /// `--quantize`
    Quantize(Quantize),
    /// `--optim`
    Optim(Optim),
    /// `--offload`
    Offload,
}

impl Plan {
    /// The plan of a run. `decoder` is allocated in `memory`, which has no device.
    pub(super) fn of(
        memory: &Memory,
        decoder: &Decoder,
        fresh_adapter: bool,
        config: &RunConfig,
        batches: &MaxBatches,
    ) -> Result<Self> {
        let (mut phases, layout) = (Vec::new(), decoder.layout());
        // Hidden states are read back to compare answers or prompts by them.
        let width = if config.compares_states() { decoder.config().width } else { 0 };
        let read = |capacity: Capacity, steps: usize| {
            // A micro-batch reads three tensors, each with a sentinel.
            let of_groups = (4 + 3 * Tensor::READBACK_EXTRA / 4) * capacity.groups;
            let count = steps * (3 * capacity.rows + 2 * capacity.sequences + of_groups + 3);
            Tensor::new(memory, Purpose::Staging, "readback", count, DType::F32)
        };
        let workspace = |capacity: Capacity| Ok((decoder.workspace(memory, capacity)?, read(capacity, 1)?));
        let compared = |capacity: Capacity| {
            let count = capacity.rows * width + Tensor::READBACK_EXTRA / 4;
            Tensor::new(memory, Purpose::Staging, "readback", count, DType::F32)
        };
        let optimizer =
            Optimizer::new(memory, layout, AdamW { optim: config.train.optim, ..AdamW::default() })?;
        let (plus, minus) = (&config.reference.positive, &config.reference.negative);
        let both = [Some(minus), Some(plus).filter(|plus| *plus != minus)];
        let values = both.into_iter().flatten().filter(|source| Reference::has_values(source, fresh_adapter));
        let arenas = |_| Arenas::new(memory, layout, Purpose::References, "reference");
        let references = values.map(arenas).collect::<Result<Vec<_>>>()?;
        let mut phase =
            |name: &'static str, made: &dyn Fn() -> Result<Box<dyn std::any::Any>>| -> Result<()> {
                memory.ledger().restart_peaks();
                let buffers = made()?;
                let by_purpose =
                    memory.ledger().by_purpose().into_iter().map(|(purpose, usage)| (purpose, usage.peak));
                phases.push(PlannedPhase {
                    name,
                    total: memory.ledger().total().peak,
                    by_purpose: by_purpose.filter(|(_, bytes)| *bytes > 0).collect(),
                });
                drop(buffers);
                Ok(())
            };
        // A `--paranoid` check reads tensors in pieces of this size.
        let piece = (Tensor::PIECE + Tensor::READBACK_EXTRA) / 4;
        let piece = || Tensor::new(memory, Purpose::Staging, "readback", piece, DType::F32);
        let checked = config.gpu.paranoid.then(piece).transpose()?;
        let room = batches.room(memory, decoder.config(), config);
        let mut best = None;
        let keep_best = |best: &mut Option<Arenas>| -> Result<()> {
            if best.is_none() && batches.held_out.is_some() {
                *best = Some(Arenas::new(memory, layout, Purpose::References, "best state")?);
            }
            Ok(())
        };
        // Online anchors are sampled and scored during training, beside a best state and a step in flight.
        let online = config.anchors.online_start_step.is_some();
        let flying = online.then(|| read(batches.whole_step, 1)).transpose()?;
        if online {
            keep_best(&mut best)?;
        }
        let of_retained = batches.retain_room(memory, decoder.config(), config);
        let (anchors, retained) = (!batches.draws.is_empty(), !batches.retain_draws.is_empty());
        if anchors || retained {
            phase("sampling", &|| {
                if anchors {
                    drop(room.allocate(memory, decoder)?);
                }
                if retained {
                    drop(of_retained.allocate(memory, decoder)?);
                }
                Ok(Box::new(()))
            })?;
        }
        // During training, moving references score in buffers of their own, which the training phase has.
        let flying = flying.filter(|_| batches.following.is_none());
        if batches.following.is_some() {
            best = None;
        }
        if let Some(capacity) = batches.scoring {
            phase("scoring", &|| {
                drop(workspace(capacity)?);
                Ok(Box::new((decoder.workspace(memory, capacity)?, compared(capacity)?)))
            })?;
        }
        drop(flying);
        keep_best(&mut best)?;
        if let Some(capacity) = batches.held_out {
            phase("evaluation", &|| Ok(Box::new(workspace(capacity)?)))?;
        }
        let answers = batches.completion_room(memory, decoder.config(), config);
        if batches.held_out.is_some() && !batches.completions.is_empty() {
            phase("answering", &|| Ok(Box::new(answers.allocate(memory, decoder)?)))?;
        }
        // Answers under the harmful instruction are sampled between steps.
        let of_harmful = batches.harmful_room(memory, decoder.config(), config);
        if !batches.harmful_draws.is_empty() {
            phase("resampling", &|| {
                Ok(Box::new((of_harmful.allocate(memory, decoder)?, read(batches.whole_step, 1)?)))
            })?;
        }
        phase("training", &|| {
            // While the device computes one step, the next is recorded.
            let reads = read(batches.whole_step, 2)?;
            let following = batches.following.map(workspace).transpose()?;
            Ok(Box::new((decoder.workspace(memory, batches.step)?, following, reads)))
        })?;
        drop((optimizer, references, best, checked));
        let scored =
            [batches.scoring, batches.held_out].into_iter().flatten().map(|capacity| capacity.tokens);
        Ok(Self {
            phases,
            decoded_together: room.rows.max(of_retained.rows),
            answered_together: answers.rows,
            resampled_together: of_harmful.rows,
            step_tokens: batches.step.tokens.max(batches.following.map_or(0, |capacity| capacity.tokens)),
            score_tokens: scored.max().unwrap_or(0),
            largest_group: batches.group_tokens,
            lora: config.lora.enabled,
            quantizable: config.lora.enabled && decoder.is_quantizable(),
        })
    }

    /// The phase with the highest peak.
    pub fn peak(&self) -> &PlannedPhase {
        // There is always a training phase. Among equal peaks this is the last.
        self.phases.iter().max_by_key(|phase| phase.total).unwrap_or(&self.phases[0])
    }

    /// Changes that may reduce the highest peak. Those that leave results unchanged come first, except
    /// [`Change::Offload`], the slowest, which is last.
    pub fn changes(&self, config: &RunConfig) -> Vec<Change> {
        let mut all = Vec::new();
        let peak = self.peak().name;
        let together = match peak {
            "sampling" => self.decoded_together,
            "answering" => self.answered_together,
            "resampling" => self.resampled_together,
            _ => 0,
        };
        if together > 1 {
            all.push(Change::MaxNumSeqs(together.div_ceil(2)));
        }
        let tokens = if peak == "training" { self.step_tokens } else { self.score_tokens };
        if together == 0 {
            // Groups are not split: a budget below the largest group's tokens has no further effect.
            let current = config.train.max_tokens_per_batch.unwrap_or(usize::MAX).min(tokens);
            let fewer = (current / 2).max(self.largest_group);
            all.extend((fewer < current).then_some(Change::MaxTokensPerBatch(fewer)));
        }
        if peak == "training" {
            let more = [Recompute::Mlp, Recompute::Full];
            all.extend(
                more.into_iter().filter(|level| *level > config.train.recompute).map(Change::Recompute),
            );
        }
        if config.train.optim == Optim::Adamw {
            all.push(Change::Optim(Optim::Adamw8bit));
        }
        if self.quantizable {
            all.extend([Quantize::Q8, Quantize::Nf4].map(Change::Quantize));
        }
        if self.lora && OFFLOADS && !config.model.offload {
            all.push(Change::Offload);
        }
        all
    }
}

/// Whether weights can stay in host memory: a block waits for those of the blocks before it, and a browser's
/// tab cannot wait.
const OFFLOADS: bool = !cfg!(target_arch = "wasm32");

impl Change {
    /// Applies the change to `config`.
    pub fn apply(self, config: &mut RunConfig) {
        match self {
            Self::MaxNumSeqs(n) => config.anchors.max_num_seqs = n,
            Self::MaxTokensPerBatch(n) => config.train.max_tokens_per_batch = Some(n),
            Self::Recompute(level) => config.train.recompute = level,
            Self::Quantize(to) => config.model.quantize = Some(to),
            Self::Optim(optim) => config.train.optim = optim,
            Self::Offload => config.model.offload = true,
        }
    }

    /// Whether results stay bit-identical, or differ only by the rounding of sums. With dropout a token
    /// budget changes results, because dropout masks depend on the batch.
    pub fn is_exact(self, config: &RunConfig) -> bool {
        match self {
            Self::Quantize(_) | Self::Optim(_) => false,
            Self::MaxTokensPerBatch(_) => config.lora.lora_dropout == 0.0,
            Self::MaxNumSeqs(_) | Self::Recompute(_) | Self::Offload => true,
        }
    }

    /// The change as messages name it.
    pub fn flag(self) -> String {
        let named = |key, value: serde_json::Result<serde_json::Value>| {
            setting_to(key, value.ok().as_ref().and_then(|value| value.as_str()).unwrap_or_default())
        };
        match self {
            Self::MaxNumSeqs(n) => setting_to("max_num_seqs", n as i64),
            Self::MaxTokensPerBatch(n) => setting_to("max_tokens_per_batch", n as i64),
            Self::Recompute(level) => named("recompute", serde_json::to_value(level)),
            Self::Offload => setting_to("offload", true),
            Self::Optim(optim) => named("optim", serde_json::to_value(optim)),
            Self::Quantize(to) => named("quantize", serde_json::to_value(to)),
        }
    }
}

/// Changes settings of `config` until their plan fits into `budget` bytes, and returns the new settings and
/// their plan. `plan` makes a plan of settings. First come changes that leave results as they are; if they do
/// not suffice, also the optimizer's moments in 8 bits, then quantised frozen weights too, then frozen
/// weights in host memory. If nothing suffices: `None`, and the smallest plan found.
///
/// # Errors
/// Errors of `plan`.
pub fn fit(
    config: &RunConfig,
    budget: u64,
    plan: &dyn Fn(&RunConfig) -> Result<Plan>,
) -> Result<(Option<RunConfig>, Plan)> {
    let first = plan(config)?;
    let mut least = first.clone();
    let optim = Change::Optim(Optim::Adamw8bit);
    let quantised = [Quantize::Q8, Quantize::Nf4].map(Change::Quantize);
    let quantised: Vec<Change> = quantised.into_iter().filter(|_| first.quantizable).collect();
    // Offloading comes last: every pass then waits for the weights.
    let last: Vec<Change> =
        [optim].into_iter().chain(quantised.last().copied()).chain([Change::Offload]).collect();
    let between = quantised.iter().map(|quantize| vec![optim, *quantize]);
    let levels =
        [Vec::new(), vec![optim]].into_iter().chain(between).chain((first.lora && OFFLOADS).then_some(last));
    for inexact in levels {
        let mut trial = config.clone();
        inexact.iter().for_each(|change| change.apply(&mut trial));
        loop {
            let now = plan(&trial)?;
            if now.peak().total <= budget {
                return Ok((Some(trial), now));
            }
            let free = |change: &Change| match change {
                Change::Offload => false,
                // It changes at most the dropout masks.
                Change::MaxTokensPerBatch(_) => true,
                change => change.is_exact(config),
            };
            let next = now.changes(&trial).into_iter().find(free);
            if now.peak().total < least.peak().total {
                least = now;
            }
            match next {
                Some(change) => change.apply(&mut trial),
                None => break,
            }
        }
    }
    Ok((None, least))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan with one phase of `bytes`.
    fn plan(name: &'static str, bytes: usize, config: &RunConfig, tokens: [usize; 3]) -> Plan {
        let [step_tokens, score_tokens, largest_group] = tokens;
        Plan {
            phases: vec![PlannedPhase { name, total: bytes as u64, by_purpose: BTreeMap::new() }],
            decoded_together: config.anchors.max_num_seqs,
            answered_together: config.anchors.max_num_seqs / 2,
            resampled_together: 0,
            step_tokens,
            score_tokens,
            largest_group,
            quantizable: true,
            lora: true,
        }
    }

    /// Made-up bytes of a training step with `config`.
    fn bytes(config: &RunConfig) -> usize {
        let tokens = config.train.max_tokens_per_batch.unwrap_or(1000).clamp(300, 1000);
        let kept = [9, 5, 1][config.train.recompute as usize];
        let weights = match config.model.quantize {
            None => 1600,
            Some(Quantize::Q8) => 800,
            Some(Quantize::Nf4) => 400,
        };
        tokens * kept
            + if config.model.offload { 50 } else { weights }
            + if config.train.optim == Optim::Adamw { 400 } else { 100 }
    }

    #[test]
    fn what_changes_results_comes_last() {
        let training = |config: &RunConfig| {
            let tokens = config.train.max_tokens_per_batch.unwrap_or(1000).clamp(300, 1000);
            Ok(plan("training", bytes(config), config, [tokens, 0, 300]))
        };
        let fitted = |budget| fit(&RunConfig::default(), budget, &training).unwrap();
        let (config, found) = fitted(4800);
        assert_eq!(config.unwrap().train.max_tokens_per_batch, Some(300));
        assert_eq!(found.peak().total, 2700 + 1600 + 400);
        let config = fitted(2300).0.unwrap();
        assert_eq!((config.train.recompute, config.train.optim), (Recompute::Full, Optim::Adamw));
        assert_eq!(fitted(2100).0.unwrap().train.optim, Optim::Adamw8bit);
        assert_eq!(fitted(1500).0.unwrap().model.quantize, Some(Quantize::Q8));
        let config = fitted(500).0.unwrap().model;
        assert_eq!((config.quantize, config.offload), (Some(Quantize::Nf4), true));
        let (config, least) = fitted(100);
        assert_eq!((config, least.peak().total), (None, 300 + 50 + 100));
    }

    #[test]
    fn a_group_that_is_larger_than_any_trained_on_ends_the_search() {
        let evaluation = |config: &RunConfig| Ok(plan("evaluation", 1000, config, [500, 900, 500]));
        assert!(fit(&RunConfig::default(), 10, &evaluation).unwrap().0.is_none());
        let sampling =
            |config: &RunConfig| Ok(plan("sampling", config.anchors.max_num_seqs, config, [1, 1, 1]));
        let (config, _) = fit(&RunConfig::default(), 10, &sampling).unwrap();
        assert_eq!(config.unwrap().anchors.max_num_seqs, 6);
        let answering =
            |config: &RunConfig| Ok(plan("answering", config.anchors.max_num_seqs, config, [1, 1, 1]));
        let (config, _) = fit(&RunConfig::default(), 10, &answering).unwrap();
        assert_eq!(config.unwrap().anchors.max_num_seqs, 3);
    }
}
