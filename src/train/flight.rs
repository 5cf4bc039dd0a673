//! Steps that are submitted and not yet looked at: while the device computes one, the host records the next.

use std::time::Instant;

use super::metrics::{Metrics, Observed, of_groups};
use super::trainer::{GroupOutcome, Pending};
use crate::Result;
use crate::loss::Loss;
use crate::loss::Method;

/// A step on its way.
pub(super) struct Flight<'g> {
    /// Counted from 0.
    pub step: usize,
    /// Its learning rate.
    pub rate: f64,
    /// Passes over the data once it is done.
    pub epoch: f64,
    /// The examples.
    pub batch: Vec<usize>,
    /// Packed tokens.
    pub tokens: usize,
    /// When it was begun.
    pub started: Instant,
    /// Its micro-batches.
    pub micro: Vec<Micro<'g>>,
    /// KTO's estimate of the KL divergence.
    pub kl: Option<f64>,
    /// The gradient's norm.
    pub norm: Pending<'g, f32>,
}

/// A micro-batch on its way.
pub(super) struct Micro<'g> {
    /// Of its groups.
    pub outcomes: Pending<'g, Vec<GroupOutcome>>,
    /// By group and response, the tokens' log-probs under the reference.
    pub references: Vec<Vec<Vec<f32>>>,
}

/// A step that is done.
pub(super) struct Landed {
    pub step: usize,
    pub batch: Vec<usize>,
    pub rate: f64,
    pub epoch: f64,
    pub tokens: usize,
    pub observed: Vec<Observed>,
    pub kl: Option<f64>,
    pub norm: f32,
    /// From when the device was free for it.
    pub seconds: f64,
}

impl Flight<'_> {
    /// Waits for the step. `last` is when the one before it landed, and is set to when this one did.
    pub async fn land(self, last: &mut Option<Instant>) -> Result<Landed> {
        let mut observed = Vec::new();
        for micro in self.micro {
            let pairs = micro.outcomes.await?.into_iter().zip(micro.references);
            observed.extend(pairs.map(|(outcome, reference)| Observed { outcome, reference }));
        }
        let norm = self.norm.await?;
        let now = Instant::now();
        let began = last.replace(now).map_or(self.started, |last| last.max(self.started));
        let Self { step, batch, rate, epoch, tokens, kl, .. } = self;
        let seconds = (now - began).as_secs_f64();
        Ok(Landed { step, batch, rate, epoch, tokens, observed, kl, norm, seconds })
    }
}

/// Lands steps that are waited for together. Their results may come all at once: the time is shared out by
/// their tokens.
pub(super) async fn land_all(due: Vec<Flight<'_>>, last: &mut Option<Instant>) -> Result<Vec<Landed>> {
    let mut all = Vec::new();
    for flight in due {
        all.push(flight.land(last).await?);
    }
    let seconds: f64 = all.iter().map(|landed: &Landed| landed.seconds).sum();
    let tokens: usize = all.iter().map(|landed| landed.tokens).sum();
    all.iter_mut().for_each(|landed| landed.seconds = seconds * landed.tokens as f64 / tokens.max(1) as f64);
    Ok(all)
}

impl Landed {
    /// Whether the losses and the gradient are numbers.
    pub fn is_finite(&self) -> bool {
        self.norm.is_finite() && self.observed.iter().all(|o| o.outcome.loss.is_finite())
    }

    /// The examples whose loss is none; all of them, where it is the gradient alone.
    pub fn offenders(&self) -> Vec<usize> {
        let pairs = || self.batch.iter().zip(&self.observed);
        let bad: Vec<usize> = pairs().filter(|(_, o)| !o.outcome.loss.is_finite()).map(|(&i, _)| i).collect();
        if bad.is_empty() { self.batch.clone() } else { bad }
    }
}

/// What adds up over a run.
#[derive(Default)]
pub(super) struct Sums {
    /// Steps landed.
    pub steps: usize,
    /// Their packed tokens.
    pub num_tokens: usize,
    /// The time they took.
    pub train_seconds: f64,
    /// Those of them that changed nothing, because their loss or gradient was no finite number, and how many
    /// of these were the last.
    pub skipped: usize,
    pub skipped_in_a_row: usize,
}

impl Sums {
    /// Adds a step; returns what is logged of it.
    pub fn add(&mut self, of: (Method, Loss), landed: &Landed) -> Metrics {
        self.steps = landed.step + 1;
        self.num_tokens += landed.tokens;
        self.train_seconds += landed.seconds;
        let mut metrics = of_groups("", of, &landed.observed);
        metrics.0.extend(landed.kl.map(|kl| ("kl".into(), kl)));
        metrics.push("grad_norm", f64::from(landed.norm));
        metrics.push("learning_rate", landed.rate);
        metrics.push("num_tokens", self.num_tokens as f64);
        metrics.push("tokens_per_second", landed.tokens as f64 / landed.seconds);
        metrics.push("epoch", landed.epoch);
        if landed.is_finite() {
            self.skipped_in_a_row = 0;
        } else {
            (self.skipped, self.skipped_in_a_row) = (self.skipped + 1, self.skipped_in_a_row + 1);
        }
        if self.skipped > 0 {
            metrics.push("skipped_steps", self.skipped as f64);
        }
        metrics.push("global_step", self.steps as f64);
        metrics
    }
}
