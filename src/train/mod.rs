//! The run: anchors, steps, references, evaluation and the stop rule.

mod align;
mod anchors;
mod best;
mod collapse;
mod draws;
mod evaluate;
mod flight;
mod forecast;
mod metrics;
mod observer;
mod order;
mod plan;
mod reach;
mod references;
mod responses;
mod setup;
mod state;
mod step;
mod steps;
mod stop;

pub use align::{Outcome, Setup, align};
pub use anchors::{Anchor, AnchorCounts, Pool, settings as sampling_settings};
pub use forecast::{Forecast, Work, expected_length};
pub use metrics::Metrics;
pub use observer::{Observer, Unwatched};
pub use plan::{Change, Phase, Plan, fit};
pub use references::Reference;
pub use setup::{Checkpoint, Inputs, Job, Named, Prepared};
pub use state::State;
pub use step::{GroupOutcome, MicroBatch, Pending, Scored, Trainer, score};
pub use stop::{StopReason, StopRule, Verdict};
