//! The largest batches that a run can have, from the lengths of its examples and the limits on anchors.
//! Buffers are allocated for them, and the memory plan counts them.

use super::anchors::Anchor;
use super::evaluate::eval_anchors;
use super::responses::{held_out_responses, loss_responses, reference_responses};
use crate::config::RunConfig;
use crate::data::{Example, Group};
use crate::gpu::Memory;
use crate::loss::Takes;
use crate::model::{Capacity, DecoderConfig};
use crate::sample::Room;

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
    /// The same for the held-out prompts that are answered at evaluations, once each.
    pub completions: Vec<(usize, usize)>,
    /// Packed tokens of the largest group. Groups are not split: no budget makes a batch smaller.
    pub group_tokens: usize,
    /// Most packed tokens of a micro-batch, from the settings and the size of a binding.
    pub step_budget: usize,
    /// Most packed tokens of a scoring batch.
    pub score_budget: usize,
}

impl MaxBatches {
    /// The batches of a run of `model` with `config` on these examples, with tensors of at most `max_binding`
    /// bytes. `anchors` are those known before the run.
    pub fn of(
        config: &RunConfig,
        (model, max_binding): (&DecoderConfig, u64),
        train: &[Example],
        eval: &[Example],
        anchors: Option<&[Vec<Anchor>]>,
    ) -> Self {
        let (method, a, t) = (config.method.method, &config.anchors, &config.train);
        let known = |i: usize| anchors.and_then(|all| all.get(i)).map_or(&[][..], Vec::as_slice);
        let online = a.online_start_step.is_some();
        let takes_anchors = method.takes() == Takes::Anchors;
        let k = if takes_anchors { config.method.num_samples } else { 0 };
        // Anchors that are not sampled yet count with the maximum length.
        let longest = anchors.into_iter().flatten().flatten().map(|anchor| anchor.ids.len()).max();
        let blank = vec![0; longest.unwrap_or(0).max(a.max_new_tokens)];
        let undrawn = &blank[..a.max_new_tokens];
        let anchors_of = |i: usize| {
            let drawn = known(i).iter().map(|anchor| anchor.ids.len());
            let drawn = drawn.map(|n| &blank[..if online { n.max(a.max_new_tokens) } else { n }]);
            drawn.chain(std::iter::repeat_n(undrawn, k.saturating_sub(known(i).len())))
        };
        let all_train = || train.iter().enumerate();
        let groups: Vec<Group> =
            all_train().map(|(i, e)| group(e, loss_responses(method, e, anchors_of(i)))).collect();
        let scored: Vec<Group> =
            all_train().map(|(i, e)| group(e, reference_responses(method, e, anchors_of(i)))).collect();
        // For KTO, the policy scores other examples' answers before each step, in the step's workspace.
        let others: Vec<Group> =
            train.iter().filter_map(|e| Some(group(e, vec![e.kl_ids.as_deref()?]))).collect();
        let (batch, step) = (t.per_device_train_batch_size, t.gradient_accumulation_steps);
        let eval_k = eval_anchors(config);
        let held_out: Vec<Group> = eval
            .iter()
            .map(|example| {
                let drawn = if example.negative_ids.is_some() { eval_k } else { 0 };
                let responses = held_out_responses(method, example, std::iter::repeat_n(undrawn, drawn));
                Group { prompt: &example.prompt_ids, responses }
            })
            .collect();
        let mut draws = Vec::new();
        if method.is_of_negatives() {
            let prompt = |example: &Example| {
                if online {
                    example.prompt_ids.len().max(example.sampling_ids.len())
                } else {
                    example.sampling_ids.len()
                }
            };
            let missing = |i: usize| if online { k } else { k.saturating_sub(known(i).len()) };
            if takes_anchors {
                draws.extend(train.iter().enumerate().map(|(i, example)| (prompt(example), missing(i))));
            }
            let watched = eval.iter().filter(|example| example.negative_ids.is_some());
            draws.extend(watched.map(|example| (example.sampling_ids.len(), eval_k)));
            draws.retain(|(_, samples)| *samples > 0);
        }
        let mut completions: Vec<(usize, usize)> = eval
            .iter()
            .map(|example| (example.prompt_ids.len(), 1))
            .filter(|(prompt, _)| prompt + a.max_new_tokens <= model.context())
            .collect();
        // Take the longest prompts: which ones are answered is only known after anchors are sampled.
        completions.sort_unstable_by(|a, b| b.cmp(a));
        completions.truncate(config.output.num_completions);
        let all = usize::MAX;
        // The widest activation of a batch must fit in one binding.
        let widest = model.up().max((model.heads + 2 * model.kv_heads) * model.head_dim).max(model.width);
        let fits = (max_binding as usize / (4 * widest)).max(1);
        let step_budget = t.max_tokens_per_batch.unwrap_or(all).min(fits);
        let score = t.max_tokens_per_batch.unwrap_or(SCORE_TOKENS).min(fits);
        let moves = [&config.reference.positive, &config.reference.negative].iter().any(|r| !r.is_fixed());
        let references = config.method.loss().formula.has_reference();
        let step_capacity = |groups: &[Group]| capacity(groups, step_budget, batch);
        let mut largest_step = step_capacity(&groups);
        if !others.is_empty() {
            largest_step = largest_step.and(step_capacity(&others));
        }
        Self {
            step: Capacity { training: Some(t.recompute), ..largest_step },
            whole_step: capacity(&groups, all, batch * step),
            scoring: references.then(|| capacity(&scored, score, all)),
            following: (references && moves).then(|| capacity(&scored, score, batch * step)),
            held_out: (!held_out.is_empty()).then(|| capacity(&held_out, score, all)),
            draws,
            completions,
            group_tokens: groups.iter().map(Group::tokens).max().unwrap_or(1),
            step_budget,
            score_budget: score,
        }
    }

    /// The buffers of the sampler that answers held-out prompts.
    pub fn completion_room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let a = &config.anchors;
        Room::of(memory, model, &self.completions, a.max_new_tokens, a.max_num_seqs)
    }

    /// The buffers of the sampler of anchors.
    pub fn room(&self, memory: &Memory, model: &DecoderConfig, config: &RunConfig) -> Room {
        let a = &config.anchors;
        Room::of(memory, model, &self.draws, a.max_new_tokens, a.max_num_seqs)
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
