//! Who watches a run: progress, figures and samples go there; the run itself writes nothing.

use super::anchors::Pool;
use super::metrics::Metrics;
use super::state::State;
use crate::Result;
use crate::data::Example;
use crate::model::Decoder;
use crate::sample::Answer;
use crate::score::Scored;

/// A part of a run, in the order of the parts. More may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The model's own answers are sampled: the items are answers.
    Anchors,
    /// The references score the answers: the items are training examples.
    References,
    /// The items are optimizer steps. Held-out examples are scored in between.
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

/// What an observer wants of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// To go on.
    #[default]
    GoOn,
    /// To end after this step with the best state so far, as if all steps were taken. Before the first step
    /// it is the same as [`Wish::Stop`].
    Finish,
    /// To end after this step with [`Error::Interrupted`](crate::Error::Interrupted). [`Observer::saved`]
    /// gets the state first, so that another run can go on from it.
    Stop,
}

/// Watches a run. An error from any call ends it at once. The run waits for every call: an observer that
/// blocks pauses it. All methods do nothing by default.
pub trait Observer {
    /// A phase of `total` items begins.
    fn begin(&mut self, phase: Phase, total: usize) {
        let _ = (phase, total);
    }
    /// Whether to go on: asked after each step, and often before the first one.
    fn wish(&mut self) -> Wish {
        Wish::GoOn
    }
    /// `items` more are done, with `tokens` tokens. Also called now and then with neither, to ask whether to
    /// go on.
    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        let _ = (items, tokens);
        Ok(())
    }
    /// The whole run, all its phases that are left, is estimated to take so many seconds more; told before
    /// `advance`.
    fn left(&mut self, seconds: f64) {
        let _ = seconds;
    }
    /// The phase is over.
    fn end(&mut self) {}
    /// A prompt's anchors are drawn; `reference` holds their log-probs under r− as it now is, and the
    /// negative's under r+.
    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        let _ = (example, pool, reference);
        Ok(())
    }
    /// Some held-out prompts' answers by the model after so many steps.
    fn completions(&mut self, step: usize, answers: &[(&Example, Answer)]) -> Result<()> {
        let _ = (step, answers);
        Ok(())
    }
    /// A step is done.
    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        let _ = metrics;
        Ok(())
    }
    /// Whether to take the run's state after so many steps, so that it can go on from there.
    fn wants_state(&mut self, step: usize) -> bool {
        let _ = step;
        false
    }
    /// Whether to take the state while anchors are drawn, before there is a first step.
    fn wants_anchors(&mut self) -> bool {
        false
    }
    /// A state that was wanted; also what was drawn before something went wrong.
    fn saved(&mut self, state: State) -> Result<()> {
        let _ = state;
        Ok(())
    }
    /// The model after so many steps, whenever it is evaluated: to sample from, or to measure.
    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        let _ = (step, decoder);
        Ok(())
    }
    /// Something that the user should know.
    fn warned(&mut self, text: &str) {
        let _ = text;
    }
    /// An evaluation is done.
    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        let _ = metrics;
        Ok(())
    }
}

/// An observer that looks away.
pub struct Unwatched;

impl Observer for Unwatched {}
