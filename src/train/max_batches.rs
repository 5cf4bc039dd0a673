//! The largest batches that a run can have, from the lengths of its examples and the limits on anchors.
//! Buffers are allocated for them, and the memory plan counts them.

use std::iter::repeat_n;

use super::anchors::Anchor;
use super::evaluate::eval_anchors;
use super::reader::answered;
use super::responses::{held_out_responses, loss_responses, reference_responses};
use crate::config::{NegativeChoice, OnlineSampler, RunConfig};
use crate::data::{Example, Group};
use crate::gpu::Memory;
use crate::loss::Takes;
use crate::model::{Capacity, DecoderConfig};
use crate::sample::{Room, shared_beginning};

/// Packed tokens of a scoring batch if `max_tokens_per_batch` is not set.
const SCORE_TOKENS: usize = 2048;

/// The largest batches of a run.
#[derive(Debug, Clone)]
pub(super) struct MaxBatches {
    /// A micro-batch of a step.
    pub step: Capacity,
    /// All groups of an optimizer step: their results are read back together.
    pub whole_step: Capacity,
    /// A batch that the references score before the first step; `None` without references.
    pub scoring: Option<Capacity>,
    /// A batch that moving references score before each step.
    pub following: Option<Capacity>,
    /// A batch of held-out examples.
    pub held_out: Option<Capacity>,
    /// Prompt tokens and number of answers of each prompt that anchors are sampled for.
    pub draws: Vec<(usize, usize)>,
    /// Number of tokens with which all these prompts begin.
    pub draws_shared: usize,
    /// As `draws`, for the prompts that are answered at evaluations, once each.
    pub completions: Vec<(usize, usize)>,
    /// Number of tokens with which all these prompts begin.
    pub completions_shared: usize,
    /// Prompt tokens of each retained prompt, which is answered once, and the number of tokens with which all
    /// of them begin.
    pub retain_draws: Vec<(usize, usize)>,
    pub retain_shared: usize,
    /// As `draws`, for the prompts with the harmful instruction, one answer each.
    pub harmful_draws: Vec<(usize, usize)>,
    pub harmful_shared: usize,
    /// Packed tokens of the largest group. Groups are not split: no budget makes a batch smaller.
    pub group_tokens: usize,
    /// Most packed tokens of a micro-batch, from the settings and the size of a binding.
    pub step_budget: usize,
    /// Most packed tokens of a scoring batch.
    pub score_budget: usize,
}

impl MaxBatches {
    /// The batches of a run of `model` with `config` on these examples, with tensors of at most `max_binding`
    /// bytes: training, held-out, retained and ordinary ones. `anchors` are those known before the run.
    pub fn of<'a>(
        config: &RunConfig,
        (model, max_binding): (&DecoderConfig, u64),
        [train, eval, retain, ordinary]: [&'a [Example]; 4],
        anchors: Option<&[Vec<Anchor>]>,
    ) -> Self {
        let (method, a, t) = (config.method.method, &config.anchors, &config.train);
        // The longest flagged answer that an example may be trained on instead of its own.
        let own = |example: &Example| example.negative_ids.as_ref().map_or(0, Vec::len);
        let choice = config.negative_choice();
        let other = match choice {
            NegativeChoice::Mcns => train.iter().map(own).max().unwrap_or(0),
            NegativeChoice::Generated => a.max_new_tokens,
            _ => 0,
        };
        if train.iter().any(|example| example.negative_ids.is_some() && own(example) < other) {
            let longer = |example: &Example| {
                let mut example = example.clone();
                if let Some(ids) = &mut example.negative_ids {
                    ids.resize(ids.len().max(other), 0);
                }
                example
            };
            let longer: Vec<Example> = train.iter().map(longer).collect();
            return Self::of(config, (model, max_binding), [&longer, eval, retain, ordinary], anchors);
        }
        let lengths = |all: &[Vec<u32>], k: usize| all.iter().take(k).map(Vec::len).collect::<Vec<_>>();
        let sampled = |i: usize| anchors.and_then(|all| all.get(i)).map_or(&[][..], Vec::as_slice);
        let has_own = |example: &Example| !example.anchor_ids.is_empty();
        // Lengths of the anchors that are known before the run.
        let known = |i: usize| match has_own(&train[i]) {
            true => lengths(&train[i].anchor_ids, config.method.num_samples),
            false => sampled(i).iter().map(|anchor| anchor.ids.len()).collect(),
        };
        let online = a.online_start_step.is_some();
        let takes_anchors = method.takes() == Takes::Anchors;
        let k = if takes_anchors { config.method.num_samples } else { 0 };
        let missing = |i: usize| match has_own(&train[i]) {
            true => 0,
            false => k.saturating_sub(sampled(i).len()),
        };
        // Anchors that are not sampled yet count with the maximum length.
        let longest = (0..train.len()).flat_map(known);
        let longest = longest.chain(eval.iter().flat_map(|e| e.anchor_ids.iter().map(Vec::len))).max();
        let longest = longest.unwrap_or(0).max(a.max_new_tokens).max(config.retained_tokens());
        let blank = vec![0; longest];
        let undrawn = &blank[..a.max_new_tokens];
        let anchors_of = |i: usize| {
            let renewed = online && !has_own(&train[i]);
            let drawn = known(i).into_iter().map(|n| if renewed { n.max(a.max_new_tokens) } else { n });
            let all: Vec<&[u32]> = drawn.map(|n| &blank[..n]).chain(repeat_n(undrawn, missing(i))).collect();
            all.into_iter()
        };
        let all_train = || train.iter().enumerate();
        let groups: Vec<Group> =
            all_train().map(|(i, e)| group(e, loss_responses(method, e, anchors_of(i)))).collect();
        let scored: Vec<Group> =
            all_train().map(|(i, e)| group(e, reference_responses(method, e, anchors_of(i)))).collect();
        // A balanced step may have an example more than once, and chains pair any prompt with any answer.
        let all_of_step = t.per_device_train_batch_size * t.gradient_accumulation_steps;
        let repeats =
            method.is_of_negatives() && (config.negatives.balance > 0 || choice == NegativeChoice::Mcns);
        let times = if repeats { all_of_step } else { 1 };
        let groups: Vec<Group> = groups.into_iter().flat_map(|group| repeat_n(group, times)).collect();
        // For KTO, the policy scores other examples' answers before each step, in the step's workspace.
        let others: Vec<Group> =
            train.iter().filter_map(|e| Some(group(e, vec![e.kl_ids.as_deref()?]))).collect();
        let (batch, step) = (t.per_device_train_batch_size, t.gradient_accumulation_steps);
        let eval_k = eval_anchors(config);
        let held_out: Vec<Group> = eval
            .iter()
            .map(|example| {
                let drawn: Vec<&[u32]> = match (has_own(example), example.negative_ids.is_some()) {
                    (true, true) => {
                        lengths(&example.anchor_ids, eval_k).iter().map(|&n| &blank[..n]).collect()
                    }
                    (false, true) => vec![undrawn; eval_k],
                    (_, false) => Vec::new(),
                };
                let responses = held_out_responses(method, example, drawn.into_iter());
                Group { prompt: &example.prompt_ids, responses }
            })
            .collect();
        // Examples that anchors are sampled for, and their number.
        let mut drawn: Vec<(&'a Example, usize)> = Vec::new();
        if takes_anchors {
            let samples = |i: usize| if online && !has_own(&train[i]) { k } else { missing(i) };
            drawn.extend(all_train().map(|(i, example)| (example, samples(i))));
        }
        if method.is_of_negatives() {
            let watched = eval.iter().filter(|example| example.negative_ids.is_some() && !has_own(example));
            drawn.extend(watched.map(|example| (example, eval_k)));
        }
        drawn.retain(|(_, samples)| *samples > 0);
        // Online anchors may be sampled from the bare prompt.
        let bare = online && a.online_sampler == OnlineSampler::Policy;
        let prompts = |example: &'a Example| -> Vec<&'a [u32]> {
            if bare { vec![&example.sampling_ids, &example.prompt_ids] } else { vec![&example.sampling_ids] }
        };
        let longest = |example| prompts(example).into_iter().map(<[u32]>::len).max().unwrap_or(0);
        let draws = drawn.iter().map(|&(example, samples)| (longest(example), samples)).collect();
        let draws_shared = shared_beginning(drawn.iter().flat_map(|&(example, _)| prompts(example)));
        let asked = answered(eval, config, model.context());
        let asked = || asked.iter().chain(ordinary);
        let completions_shared = shared_beginning(asked().map(|example| example.prompt_ids.as_slice()));
        let completions: Vec<(usize, usize)> = asked().map(|example| (example.prompt_ids.len(), 1)).collect();
        let all = usize::MAX;
        // The widest activation of a batch must fit in one binding.
        let widest = model.up().max((model.heads + 2 * model.kv_heads) * model.head_dim).max(model.width);
        let fits = (max_binding as usize / (4 * widest)).max(1);
        let step_budget = t.max_tokens_per_batch.unwrap_or(all).min(fits);
        let score = t.max_tokens_per_batch.unwrap_or(SCORE_TOKENS).min(fits);
        let moves = [&config.reference.positive, &config.reference.negative].iter().any(|r| !r.is_fixed())
            || matches!(choice, NegativeChoice::Mcns | NegativeChoice::Generated);
        // Prompts are compared by their hidden states.
        let compared =
            method.is_of_negatives() && (config.negatives.balance > 0 || choice == NegativeChoice::Mcns);
        let references = config.method.loss().formula.has_reference();
        let step_capacity = |groups: &[Group]| capacity(groups, step_budget, batch);
        let answer = &blank[..config.retained_tokens()];
        let retained: Vec<Group> = retain.iter().map(|e| group(e, vec![answer])).collect();
        // A step may take a retained prompt again in its next batch.
        let beside = |most: usize, budget: usize, batches: usize| match retained.is_empty() {
            true => capacity(&groups, budget, most),
            false => {
                let of_batch = capacity(&retained, budget, config.retain.batch_size);
                let all = (1..batches).fold(of_batch, |all, _| all.beside(of_batch, budget));
                capacity(&groups, budget, most).beside(all, budget)
            }
        };
        // Alpha and beta are measured on the anchors after the prompts that they are sampled from.
        let shown: Vec<Group> = all_train()
            .map(|(i, e)| Group { prompt: &e.sampling_ids, responses: anchors_of(i).collect() })
            .collect();
        let harmful = || train.iter().map(|e| &e.harmful_ids).filter(|ids| !ids.is_empty());
        let mut largest_step = beside(batch, step_budget, 1);
        if !others.is_empty() {
            largest_step = largest_step.and(step_capacity(&others));
        }
        Self {
            step: Capacity { training: Some(t.recompute), ..largest_step },
            whole_step: beside(batch * step, all, step),
            // Groups with one capacity each: these are scored one after another.
            scoring: [
                (references || compared).then_some(&scored),
                Some(&retained),
                config.method.is_measured().then_some(&shown),
            ]
            .into_iter()
            .flatten()
            .filter(|groups| !groups.is_empty())
            .map(|groups| capacity(groups, score, all))
            .reduce(Capacity::and),
            following: (references && moves).then(|| capacity(&scored, score, batch * step)),
            held_out: (!held_out.is_empty()).then(|| capacity(&held_out, score, all)),
            draws,
            draws_shared,
            completions,
            completions_shared,
            group_tokens: groups.iter().chain(&retained).map(Group::tokens).max().unwrap_or(1),
            retain_draws: retain.iter().map(|example| (example.prompt_ids.len(), 1)).collect(),
            retain_shared: shared_beginning(retain.iter().map(|example| example.prompt_ids.as_slice())),
            harmful_draws: harmful().map(|ids| (ids.len(), 1)).collect(),
            harmful_shared: shared_beginning(harmful().map(Vec::as_slice)),
            step_budget,
            score_budget: score,
        }
    }

    /// The buffers of the sampler of answers under the harmful instruction.
    pub fn harmful_room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let a = &config.anchors;
        Room::of(memory, model, &self.harmful_draws, self.harmful_shared, a.max_new_tokens, a.max_num_seqs)
    }

    /// The buffers of the sampler that answers prompts at evaluations.
    pub fn completion_room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let a = &config.anchors;
        let shared = self.completions_shared;
        let most = config.output.completion_tokens;
        Room::of(memory, model, &self.completions, shared, most, a.max_num_seqs)
    }

    /// The buffers of the sampler of retained answers.
    pub fn retain_room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let (most, sequences) = (config.retained_tokens(), config.anchors.max_num_seqs);
        Room::of(memory, model, &self.retain_draws, self.retain_shared, most, sequences)
    }

    /// The buffers of the sampler of anchors.
    pub fn room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let a = &config.anchors;
        Room::of(memory, model, &self.draws, self.draws_shared, a.max_new_tokens, a.max_num_seqs)
    }
}

fn group<'a>(example: &'a Example, responses: Vec<&'a [u32]>) -> Group<'a> {
    Group { prompt: &example.prompt_ids, responses }
}

/// A capacity for every batch of at most `most` groups and `budget` packed tokens, even if responses are
/// shorter than in `groups`.
fn capacity(groups: &[Group], budget: usize, most: usize) -> Capacity {
    let largest = |most: usize, size: &dyn Fn(&Group) -> usize| -> usize {
        let mut sizes: Vec<usize> = groups.iter().map(size).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.into_iter().take(most).sum()
    };
    let shortest = groups.iter().map(|group| group.prompt.len()).min().unwrap_or(1).max(1);
    let count = most.min(groups.len()).min((budget / shortest).max(1));
    let tokens = largest(count, &|group| group.tokens()).min(budget.max(largest(1, &|group| group.tokens())));
    // Rows of a group = its packed tokens − its prompt tokens + its responses.
    let responses = largest(1, &|group| group.responses.len());
    let beside = |groups: usize| (tokens + groups * responses).saturating_sub(groups * shortest);
    Capacity {
        tokens: tokens.max(1),
        rows: largest(count, &|group| group.rows()).min(beside(1).max(beside(count))).max(1),
        sequences: largest(count, &|group| group.responses.len()).max(1),
        groups: count.max(1),
        training: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::packing::{Packed, split};

    #[test]
    fn no_batch_is_larger() {
        // Every third response is shorter, in many orders.
        let lengths =
            |i: usize| (3 + i * 7 % 11, (0..i % 4 + 1).map(|j| 1 + (i * 5 + j * 3) % 9).collect::<Vec<_>>());
        let zeros = [0u32; 64];
        let group = |(prompt, lengths): (usize, Vec<usize>)| Group {
            prompt: &zeros[..prompt],
            responses: lengths.into_iter().map(|length| &zeros[..length]).collect(),
        };
        let groups: Vec<Group> = (0..40).map(|i| group(lengths(i))).collect();
        for (budget, most) in
            [(usize::MAX, 3), (40, usize::MAX), (25, 2), (1, usize::MAX), (1000, usize::MAX)]
        {
            let limit = capacity(&groups, budget, most);
            for round in 0..40 {
                let shorter = |(j, &length): (usize, &usize)| {
                    if (j + round).is_multiple_of(3) { 1 } else { length }
                };
                let drawn = |i: usize| {
                    let (prompt, most) = lengths(i);
                    group((prompt, most.iter().enumerate().map(shorter).collect()))
                };
                let mut order: Vec<Group> = (0..40).map(drawn).collect();
                order.sort_by_key(|group| (group.tokens() * (2 * round + 1)) % 37);
                for range in split(&order, budget, most) {
                    let packed = Packed::new(&order[range]);
                    let needed = Capacity::covering([&packed].into_iter(), None);
                    assert!(limit.takes(&needed), "budget {budget}, {most} groups: {needed:?} in {limit:?}");
                }
            }
        }
    }

    #[test]
    fn one_group_needs_what_it_is() {
        let zeros = [0; 10];
        let group = Group { prompt: &zeros, responses: vec![&zeros[..5], &zeros[..7], &zeros[..3]] };
        let found = capacity(&[group], usize::MAX, 2);
        assert_eq!((found.tokens, found.rows, found.sequences, found.groups), (22, 15, 3, 1));
    }
}
