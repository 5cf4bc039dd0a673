//! Training runs: anchors, references, optimizer steps, evaluation and the stop rule.

mod align;
mod anchors;
mod best;
mod collapse;
mod drawing;
mod evaluate;
mod flight;
mod forecast;
mod max_batches;
mod metrics;
mod observer;
mod order;
mod plan;
mod references;
mod responses;
mod restore;
mod retain;
mod run;
mod samples_file;
mod setup;
mod state;
mod stop;
mod trainer;
mod training;

pub use align::align;
pub use anchors::{Anchor, AnchorCounts, AnchorFilter, Pool};
pub use forecast::{Forecast, Work, expected_length};
pub use metrics::Metrics;
pub use observer::{Observer, Phase, Unwatched, Wish};
pub use plan::{Change, Plan, PlannedPhase, fit};
pub use references::Reference;
pub use run::{Outcome, Setup};
pub use setup::{Inputs, Job, Named, Prepared, ReferenceBytes};
pub use state::State;
pub use stop::{StopReason, StopRule, Verdict};
pub use trainer::{GroupOutcome, MicroBatch, MicroOutcome, Pending, RetainedGroups, Trainer};
