//! Who watches a run: progress, figures and samples go there; the run itself writes nothing.

use super::anchors::Pool;
use super::metrics::Metrics;
use super::state::State;
use crate::Result;
use crate::data::Example;
use crate::model::Decoder;
use crate::sample::Answer;
use crate::score::Scored;

/// Watches a run. An error from any call ends it. What an observer does not care for it need not define.
pub trait Observer {
    /// A phase of `total` items begins.
    fn begin(&mut self, what: &str, total: usize) {
        let _ = (what, total);
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
