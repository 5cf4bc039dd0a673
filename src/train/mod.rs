//! The run: anchors, steps, references, the stop rule.
mod step;
pub use step::{GroupOutcome, MicroBatch, Scored, Trainer, score};
