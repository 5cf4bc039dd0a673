//! The observer of a run: it receives progress, metrics and samples. The run itself writes nothing.

use super::anchors::Pool;
use super::cleaner::Cleaned;
use super::metrics::Metrics;
use super::reader::Asked;
use super::state::State;
use crate::Result;
use crate::data::Example;
use crate::model::Decoder;
use crate::sample::Answer;
use crate::score::Scored;

/// A phase of a run, in order. More may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Sampling the model's own answers; the items are answers.
    Anchors,
    /// Scoring the answers under the references; the items are training examples.
    References,
    /// Training, with evaluations; the items are optimizer steps.
    Training,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anchors => "sampling anchors",
            Self::References => "reference log-probs",
            Self::Training => "training",
        })
    }
}

/// What an observer wants a run to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Continue.
    #[default]
    GoOn,
    /// End after this step with the best state so far, as if all steps were taken. Before the first step it
    /// is the same as [`Wish::Stop`].
    Finish,
    /// End after this step with [`Error::Interrupted`](crate::Error::Interrupted). [`Observer::saved`] gets
    /// the state first, so that another run can resume from it.
    Stop,
}

/// Watches a run. An error from any call ends the run at once. The run waits for every call: an observer that
/// blocks pauses it. All methods do nothing by default.
pub trait Observer {
    /// A phase of `total` items starts.
    fn begin(&mut self, phase: Phase, total: usize) {
        let _ = (phase, total);
    }
    /// Whether to continue. Called after each step, and often before the first one.
    fn wish(&mut self) -> Wish {
        Wish::GoOn
    }
    /// `items` more items with `tokens` tokens are done. Also called regularly with zeros, so that an
    /// observer can pause the run, or end it with an error.
    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        let _ = (items, tokens);
        Ok(())
    }
    /// Estimated seconds until the end of the run, over all phases left. Called before `advance`.
    fn left(&mut self, seconds: f64) {
        let _ = seconds;
    }
    /// The phase has ended.
    fn end(&mut self) {}
    /// A prompt's anchors were sampled. `reference` has their log-probs under the current r−, then the
    /// negative's under r+.
    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        let _ = (example, pool, reference);
        Ok(())
    }
    /// Bad anchors were looked for; `cleaned` has the share of them and the verdict on each anchor.
    fn cleaned(&mut self, cleaned: &Cleaned<'_>) -> Result<()> {
        let _ = cleaned;
        Ok(())
    }
    /// The model's answers to some prompts after `step` steps.
    fn completions(&mut self, step: usize, asked: Asked, answers: &[(&Example, Answer)]) -> Result<()> {
        let _ = (step, asked, answers);
        Ok(())
    }
    /// The examples of a step, with the flagged answers that it trains on. `step` counts from 0.
    fn chosen(&mut self, step: usize, examples: &[&Example]) {
        let _ = (step, examples);
    }
    /// A step is done; `metrics` are its metrics.
    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        let _ = metrics;
        Ok(())
    }
    /// Whether to call `saved` with the run's state after `step` steps, so that it can be resumed from there.
    fn wants_state(&mut self, step: usize) -> bool {
        let _ = step;
        false
    }
    /// Whether to call `saved` now, while anchors are sampled before the first step.
    fn wants_anchors(&mut self) -> bool {
        false
    }
    /// A state that was asked for, or the anchors that were sampled before the run was interrupted or the GPU
    /// failed.
    fn saved(&mut self, state: State) -> Result<()> {
        let _ = state;
        Ok(())
    }
    /// The model after `step` steps, at every evaluation: to sample from, or to measure.
    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        let _ = (step, decoder);
        Ok(())
    }
    /// A message for the user that is not a warning.
    fn noted(&mut self, text: &str) {
        let _ = text;
    }
    /// A warning for the user.
    fn warned(&mut self, text: &str) {
        let _ = text;
    }
    /// An evaluation is done; `metrics` are its metrics.
    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        let _ = metrics;
        Ok(())
    }
}

/// An observer that does nothing.
pub struct Unwatched;

impl Observer for Unwatched {}
