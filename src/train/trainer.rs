//! One optimizer step over packed micro-batches, and scoring without one.

use std::pin::Pin;

use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{Gpu, Recorder};
use crate::loss::Loss;
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{Dropout, Pass, Recompute};
use crate::optim::Optimizer;
use crate::score::{Scored, read_scores};

/// What a reward may be off by, as a share of its answer's log-prob: a few units in f32's last place.
const ROUNDING: f32 = 2e-6;

/// One group's part of a step.
#[derive(Debug, Clone)]
pub struct GroupOutcome {
    /// The group's loss.
    pub loss: f32,
    /// Of all responses but the last (D²O's anchors: β × their mean log-ratio; of pairs the chosen answer),
    /// and of the last.
    pub rewards: [f32; 2],
    /// Its responses, in order.
    pub responses: Vec<Scored>,
}

impl GroupOutcome {
    /// The difference of the rewards; of D²O it is z, the argument of σ.
    pub fn margin(&self) -> f32 {
        self.rewards[0] - self.rewards[1]
    }

    /// Whether the margin of `loss` is above 0, by more than what f32 makes of log-probs of this size: before
    /// the first step policy and reference differ by rounding alone.
    pub fn is_won(&self, loss: Loss) -> bool {
        let (weight, per_token) = loss.reward_scale();
        let size =
            |r: &Scored| r.logp.abs() / if per_token { r.token_logps.len().max(1) as f32 } else { 1.0 };
        let largest = self.responses.iter().map(size).fold(0.0, f32::max);
        self.margin() > ROUNDING * weight as f32 * largest
    }
}

/// A result that the device is still at work on. It can wait while more is recorded.
pub type Pending<'g, T> = Pin<Box<dyn Future<Output = Result<T>> + 'g>>;

/// A policy in training: its optimizer and the workspace of its steps.
pub struct Trainer<'g> {
    gpu: &'g Gpu,
    /// The model.
    pub decoder: Decoder,
    /// Its optimizer.
    pub optimizer: Optimizer,
    workspace: Option<Workspace>,
    capacity: Capacity,
    loss: Loss,
    seed: u32,
    micro_batches: u32,
}

/// One micro-batch: groups and, for each of their responses in order, its reference's summed log-prob.
pub struct MicroBatch<'a> {
    /// The groups.
    pub groups: Vec<Group<'a>>,
    /// Per response of all groups; empty for methods without a reference.
    pub reference: Vec<f32>,
    /// KTO's estimate of the KL divergence over the whole step; 0 for other methods.
    pub kl: f64,
}

impl<'g> Trainer<'g> {
    /// A trainer of `decoder`.
    pub fn new(gpu: &'g Gpu, decoder: Decoder, optimizer: Optimizer, loss: Loss, seed: u32) -> Self {
        let capacity = Capacity::covering(std::iter::empty(), Some(Recompute::None));
        Self { gpu, decoder, optimizer, workspace: None, capacity, loss, seed, micro_batches: 0 }
    }

    /// Micro-batches so far: dropout's counter.
    pub(super) fn micro_batches(&self) -> u32 {
        self.micro_batches
    }

    /// Goes on after so many micro-batches.
    pub(super) fn set_micro_batches(&mut self, done: u32) {
        self.micro_batches = done;
    }

    /// Makes the workspace, when it is first needed, for batches up to `capacity`. A batch beyond it has it
    /// made anew.
    pub fn reserve(&mut self, capacity: Capacity) {
        self.workspace = None;
        self.capacity = capacity;
    }

    /// Gives the workspace's memory back until the next batch, once the device is done with it.
    pub async fn put_away(&mut self) -> Result<()> {
        if self.workspace.is_some() {
            self.gpu.finished().await?;
            self.workspace = None;
        }
        Ok(())
    }

    /// Takes the workspace, made to fit `packed`.
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

    /// Log-probs of every response of `groups` as the policy now is, in the workspace of its steps.
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

    /// Submits forward, loss and backward of one micro-batch: its gradients are added to the optimizer's.
    /// `divisor` is the number of groups in the whole step. The outcomes come when they are waited for, and
    /// nothing else has to wait for them.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch<'_>,
        divisor: usize,
    ) -> Result<Pending<'g, Vec<GroupOutcome>>> {
        let packed = Packed::new(&batch.groups);
        let mut rec = Recorder::new(self.gpu);
        let mut ws = self.fit(&packed)?;
        ws.load(&mut rec, &packed)?;
        ws.reference.write_f32(self.gpu, &batch.reference);
        let dropout = Some(Dropout { step: self.micro_batches, seed: self.seed });
        let pass = Pass { dropout, ..self.decoder.policy() };
        self.decoder.score(&mut rec, pass, &ws)?;
        ws.loss(&mut rec, self.loss, divisor, batch.kl)?;
        self.decoder.backward(&mut rec, pass, self.optimizer.gradients(), &ws)?;
        rec.submit();
        self.micro_batches += 1;
        let outcome = ws.outcome.slice(0, 4 * packed.groups.len()).read_f32(self.gpu);
        let scored = read_scores(self.gpu, &ws, packed);
        self.workspace = Some(ws);
        Ok(Box::pin(async move {
            let (outcome, scored) = (outcome.await?, scored.await?);
            let outcomes = outcome.chunks_exact(4).zip(scored).map(|(o, responses)| GroupOutcome {
                loss: o[0],
                rewards: [o[2], o[3]],
                responses,
            });
            Ok(outcomes.collect())
        }))
    }

    /// Submits the optimizer step on the gradients added since the last one. Their norm before clipping comes
    /// later.
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
            outcome.is_won(Loss { formula: Formula::D2o { alpha: 0.1, beta: 0.01 }, length_normalize })
        };
        // A millionth of 1,000 nats, times alpha.
        assert!(!won(1e-5, -1000.0, false) && won(1e-3, -1000.0, false));
        assert!(won(1e-5, -1000.0, true), "of a mean over 100 tokens it is far less");
        assert!(!won(0.0, 0.0, false) && !won(-1.0, -1000.0, false));
    }
}
