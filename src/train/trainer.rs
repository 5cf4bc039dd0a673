//! Optimizer steps over packed micro-batches, and scoring with the policy.

use std::pin::Pin;

use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{Gpu, Recorder};
use crate::loss::{Loss, Retain};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{Dropout, Pass, Recompute};
use crate::optim::Optimizer;
use crate::score::{Scored, read_scores};

/// Rounding error of a reward relative to its answer's log-prob: a few units in the last place of an f32.
const ROUNDING: f32 = 2e-6;

/// The loss, rewards and log-probs of one group in a step.
#[derive(Debug, Clone)]
pub struct GroupOutcome {
    /// The group's loss.
    pub loss: f32,
    /// The mean reward of all responses but the last, and the reward of the last. For D²O the first is β ×
    /// the mean log-ratio of the anchors; for pairs it is the chosen answer's reward.
    pub rewards: [f32; 2],
    /// Its responses, in order.
    pub responses: Vec<Scored>,
}

impl GroupOutcome {
    /// The difference of the rewards; for D²O it is z, the argument of σ, unless the negative is below its
    /// floor.
    pub fn margin(&self) -> f32 {
        self.rewards[0] - self.rewards[1]
    }

    /// Whether the margin of `loss` is above 0 by more than the rounding error of the log-probs: before the
    /// first step, policy and reference differ only by rounding.
    pub fn is_won(&self, loss: Loss) -> bool {
        let (weight, per_token) = loss.reward_scale();
        let size =
            |r: &Scored| r.logp.abs() / if per_token { r.token_logps.len().max(1) as f32 } else { 1.0 };
        let largest = self.responses.iter().map(size).fold(0.0, f32::max);
        self.margin() > ROUNDING * weight as f32 * largest
    }
}

/// A result that the device is still computing. More work can be submitted before it is awaited.
pub type Pending<'g, T> = Pin<Box<dyn Future<Output = Result<T>> + 'g>>;

/// A policy with its optimizer and the workspace of its steps.
pub struct Trainer<'g> {
    gpu: &'g Gpu,
    /// The model.
    pub decoder: Decoder,
    /// The optimizer.
    pub optimizer: Optimizer,
    workspace: Option<Workspace>,
    capacity: Capacity,
    loss: Loss,
    seed: u32,
    micro_batches: u32,
}

/// The retain term's part of a micro-batch.
pub struct RetainedGroups<'a> {
    /// Prompts with the answers that are retained.
    pub groups: Vec<Group<'a>>,
    /// The log-probs of the answers' tokens before training, in order.
    pub start: Vec<f32>,
    /// The form of the term.
    pub form: Retain,
    /// The term's weight divided by the number of retained answers in the whole step.
    pub scale: f64,
}

/// The results of one micro-batch.
#[derive(Debug, Clone)]
pub struct MicroOutcome {
    /// The outcome of each group of the preference loss.
    pub groups: Vec<GroupOutcome>,
    /// The log-probs of each retained answer.
    pub retained: Vec<Scored>,
}

/// One micro-batch.
pub struct MicroBatch<'a> {
    /// The groups of the preference loss.
    pub groups: Vec<Group<'a>>,
    /// The groups of the retain term.
    pub retained: Option<RetainedGroups<'a>>,
    /// The weighted sum of the log-probs of each response of all groups under its reference, in order; empty
    /// for methods without a reference.
    pub reference: Vec<f32>,
    /// By what the log-prob of each token of all groups' responses is multiplied, in order; empty for 1.
    pub weights: Vec<f32>,
    /// KTO's estimate of the KL divergence over the whole step; 0 for other methods.
    pub kl: f64,
}

impl<'g> Trainer<'g> {
    /// A trainer of `decoder`.
    pub fn new(gpu: &'g Gpu, decoder: Decoder, optimizer: Optimizer, loss: Loss, seed: u32) -> Self {
        let capacity = Capacity::covering(std::iter::empty(), Some(Recompute::None));
        Self { gpu, decoder, optimizer, workspace: None, capacity, loss, seed, micro_batches: 0 }
    }

    /// Sets the loss of the steps to come.
    pub(super) fn set_loss(&mut self, loss: Loss) {
        self.loss = loss;
    }

    /// Number of micro-batches so far: the counter of dropout's random numbers.
    pub(super) fn micro_batches(&self) -> u32 {
        self.micro_batches
    }

    /// Sets the number of micro-batches so far, to resume a run.
    pub(super) fn set_micro_batches(&mut self, done: u32) {
        self.micro_batches = done;
    }

    /// Sets the capacity of the workspace, which is allocated for the next batch. A batch that does not fit
    /// reallocates it.
    pub fn reserve(&mut self, capacity: Capacity) {
        self.workspace = None;
        self.capacity = capacity;
    }

    /// Waits for the device, then frees the workspace until the next batch.
    pub async fn put_away(&mut self) -> Result<()> {
        if self.workspace.is_some() {
            self.gpu.finished().await?;
            self.workspace = None;
        }
        Ok(())
    }

    /// Takes the workspace, or allocates one that fits `packed`.
    fn fit(&mut self, packed: &Packed) -> Result<Workspace> {
        let needed = Capacity::covering([packed].into_iter(), self.capacity.training);
        if !self.capacity.takes(&needed) {
            self.reserve(self.capacity.and(needed));
        }
        match self.workspace.take() {
            Some(ws) => Ok(ws),
            None => self.decoder.workspace(self.gpu, self.capacity),
        }
    }

    /// Log-probs of every response of `groups` under the current policy, in the workspace of its steps.
    pub async fn score(&mut self, groups: &[Group<'_>]) -> Result<Vec<Vec<Scored>>> {
        let packed = Packed::new(groups);
        let mut rec = Recorder::new(self.gpu);
        let mut ws = self.fit(&packed)?;
        ws.load(&mut rec, &packed)?;
        self.decoder.score(&mut rec, self.decoder.policy(), &ws)?;
        rec.submit();
        let scored = read_scores(self.gpu, &ws, packed);
        self.workspace = Some(ws);
        scored.await
    }

    /// Submits forward pass, loss and backward pass of one micro-batch; its gradients are added to the
    /// optimizer's. `divisor` is the number of groups in the whole step, without those of the retain term.
    /// Other work can be submitted before the results are awaited.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch<'_>,
        divisor: usize,
    ) -> Result<Pending<'g, MicroOutcome>> {
        let (own, retained) = (batch.groups.len(), batch.retained.as_ref());
        let all: Vec<Group> =
            batch.groups.iter().chain(retained.iter().flat_map(|r| &r.groups)).cloned().collect();
        let packed = Packed::new(&all);
        let mut rec = Recorder::new(self.gpu);
        let mut ws = self.fit(&packed)?;
        ws.load(&mut rec, &packed)?;
        ws.reference.write_f32(self.gpu, &batch.reference);
        if !batch.weights.is_empty() {
            ws.weights.write_f32(self.gpu, &batch.weights);
        }
        let dropout = Some(Dropout { step: self.micro_batches, seed: self.seed });
        let pass = Pass { dropout, ..self.decoder.policy() };
        self.decoder.score(&mut rec, pass, &ws)?;
        if own > 0 {
            ws.loss(&mut rec, self.loss, own, divisor, batch.kl)?;
        }
        if let Some(retained) = retained {
            let first = batch.groups.iter().map(Group::rows).sum();
            ws.start.slice(first, retained.start.len()).write_f32(self.gpu, &retained.start);
            ws.retain(&mut rec, retained.form, first, retained.scale)?;
        }
        self.decoder.backward(&mut rec, pass, self.optimizer.gradients(), &ws)?;
        rec.submit();
        self.micro_batches += 1;
        let outcome = (own > 0).then(|| ws.outcome.slice(0, 4 * own).read_f32(self.gpu));
        let scored = read_scores(self.gpu, &ws, packed);
        self.workspace = Some(ws);
        Ok(Box::pin(async move {
            let outcome = match outcome {
                Some(outcome) => outcome.await?,
                None => Vec::new(),
            };
            let mut scored = scored.await?;
            let retained = scored.split_off(own).into_iter().flatten().collect();
            let groups = outcome.chunks_exact(4).zip(scored).map(|(o, responses)| GroupOutcome {
                loss: o[0],
                rewards: [o[2], o[3]],
                responses,
            });
            Ok(MicroOutcome { groups: groups.collect(), retained })
        }))
    }

    /// Submits the optimizer step on the gradients added since the last one. The result is their norm before
    /// clipping.
    pub fn step(&mut self, lr: f64) -> Result<Pending<'g, f32>> {
        let mut rec = Recorder::new(self.gpu);
        self.optimizer.step(&mut rec, self.decoder.layout(), self.decoder.values(), lr)?;
        rec.submit();
        let clip = self.optimizer.clip().read_f32(self.gpu);
        Ok(Box::pin(async move { Ok(clip.await?[0]) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::Formula;

    #[test]
    fn rounding_wins_no_margin() {
        let won = |margin: f32, logp: f32, length_normalize: bool| {
            let responses = vec![Scored { token_logps: vec![logp / 100.0; 100], logp, entropy: 0.0 }];
            let outcome = GroupOutcome { loss: 0.0, rewards: [margin, 0.0], responses };
            outcome.is_won(Loss {
                formula: Formula::D2o { alpha: 0.1, beta: 0.01 },
                length_normalize,
                negative_floor: None,
            })
        };
        // The threshold is ROUNDING × alpha × 1,000 nats = 2e-4.
        assert!(!won(1e-5, -1000.0, false) && won(1e-3, -1000.0, false));
        assert!(won(1e-5, -1000.0, true), "for a mean over 100 tokens the threshold is 2e-6");
        assert!(!won(0.0, 0.0, false) && !won(-1.0, -1000.0, false));
    }
}
