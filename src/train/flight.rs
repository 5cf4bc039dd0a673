//! Steps in flight: submitted, but with results not read yet. While the device computes one step, the host
//! records the next.

use web_time::Instant;

use super::metrics::{Metrics, Observed, of_groups, retain_loss};
use super::trainer::{MicroOutcome, Pending};
use crate::Result;
use crate::config::RetainConfig;
use crate::loss::{Loss, Method, Retain};
use crate::score::Scored;

/// A step in flight.
pub(super) struct Flight<'g> {
    /// Index of the step, from 0.
    pub step: usize,
    /// The learning rate.
    pub rate: f64,
    /// Epochs done after this step.
    pub epoch: f64,
    /// Indices of the examples.
    pub batch: Vec<usize>,
    /// Packed tokens.
    pub tokens: usize,
    /// When the host started to record it.
    pub started: Instant,
    /// Its micro-batches.
    pub micro: Vec<Micro<'g>>,
    /// KTO's estimate of the KL divergence.
    pub kl: Option<f64>,
    /// The gradient norm before clipping.
    pub norm: Pending<'g, f32>,
}

/// A micro-batch in flight.
pub(super) struct Micro<'g> {
    /// Its results.
    pub outcome: Pending<'g, MicroOutcome>,
    /// Token log-probs under the reference, by group and response.
    pub references: Vec<Vec<Vec<f32>>>,
    /// Indices of the retained examples.
    pub retained: Vec<usize>,
}

/// A finished step.
pub(super) struct Landed {
    pub step: usize,
    pub batch: Vec<usize>,
    pub rate: f64,
    pub epoch: f64,
    pub tokens: usize,
    pub observed: Vec<Observed>,
    /// Indices of the retained examples, and the log-probs of their answers.
    pub retained: Vec<(usize, Scored)>,
    pub kl: Option<f64>,
    pub norm: f32,
    /// Seconds from when the device was free for this step until its results were read.
    pub seconds: f64,
}

impl Flight<'_> {
    /// Waits for the step's results. `last` is when the previous step's results came; it is set to when these
    /// came.
    pub async fn land(self, last: &mut Option<Instant>) -> Result<Landed> {
        let (mut observed, mut retained) = (Vec::new(), Vec::new());
        for micro in self.micro {
            let outcome = micro.outcome.await?;
            retained.extend(micro.retained.into_iter().zip(outcome.retained));
            let pairs = outcome.groups.into_iter().zip(micro.references);
            observed.extend(pairs.map(|(outcome, reference)| Observed { outcome, reference }));
        }
        let norm = self.norm.await?;
        let now = Instant::now();
        let began = last.replace(now).map_or(self.started, |last| last.max(self.started));
        let Self { step, batch, rate, epoch, tokens, kl, .. } = self;
        let seconds = (now - began).as_secs_f64();
        Ok(Landed { step, batch, rate, epoch, tokens, observed, retained, kl, norm, seconds })
    }
}

/// Waits for several steps. Their results may arrive together, so the time is divided by tokens.
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
    /// Whether all losses and the gradient norm are finite.
    pub fn is_finite(&self) -> bool {
        let retained = self.retained.iter().all(|(_, answer)| answer.logp.is_finite());
        self.norm.is_finite() && retained && self.observed.iter().all(|o| o.outcome.loss.is_finite())
    }

    /// Indices of the examples whose loss is NaN or infinite; the whole batch if only the gradient is.
    pub fn offenders(&self) -> Vec<usize> {
        let pairs = || self.batch.iter().zip(&self.observed);
        let bad: Vec<usize> = pairs().filter(|(_, o)| !o.outcome.loss.is_finite()).map(|(&i, _)| i).collect();
        if bad.is_empty() { self.batch.clone() } else { bad }
    }
}

/// Totals of a run.
#[derive(Default)]
pub(super) struct Sums {
    /// Finished steps.
    pub steps: usize,
    /// Packed tokens of these steps.
    pub num_tokens: usize,
    /// Seconds that these steps took.
    pub train_seconds: f64,
    /// Steps that were skipped because their loss or gradient was NaN or infinite.
    pub skipped: usize,
    /// Consecutive skipped steps up to now.
    pub skipped_in_a_row: usize,
}

impl Sums {
    /// Adds a step; returns the metrics to log. `retained` has the log-probs of all retained answers before
    /// training, for the form and weight of the retain term.
    pub fn add(
        &mut self,
        of: (Method, Loss),
        (term, retained): (&RetainConfig, &[Scored]),
        landed: &Landed,
    ) -> Metrics {
        self.steps = landed.step + 1;
        self.num_tokens += landed.tokens;
        self.train_seconds += landed.seconds;
        let mut metrics = of_groups("", of, &landed.observed);
        if !landed.retained.is_empty() {
            let answers: Vec<(&Scored, &Scored)> =
                landed.retained.iter().map(|(i, now)| (now, &retained[*i])).collect();
            let loss = retain_loss(term.form, &answers);
            if let Some((_, total)) = metrics.0.iter_mut().find(|(name, _)| name == "loss") {
                *total += term.weight * loss;
            }
            metrics.push("retain_loss", loss);
            metrics.push("kl/retain", retain_loss(Retain::Kl, &answers));
        }
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
