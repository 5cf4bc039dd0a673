//! How fast is this adapter? What `aweigh bench` measures: kernels against the adapter's own peak, and whole
//! steps.
//!
//! Every figure is the list of its runs' seconds; readers take the median. The first run, which compiles
//! shaders, is not among them.

mod rates;
mod steps;
mod synthetic;
mod tune;

pub use rates::{Peak, Rate, attention, matmul, peak};
pub use steps::{GroupTimes, Held, SamplingTimes, StepTimes, group, sampling, step};
pub use synthetic::{SHAPES, Synthetic};
pub use tune::{Product, products, tune};

use std::time::Instant;

use crate::Result;
use crate::gpu::{Gpu, Recorder};

/// The middle of the values, of an even number the mean of the two in the middle; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    0.5 * (middle((sorted.len().saturating_sub(1)) / 2) + middle(sorted.len() / 2))
}

/// How often something is timed.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// Runs whose seconds are kept.
    pub count: usize,
    /// Seconds that a run of short work is repeated for, so that the clock and the submit do not show.
    pub seconds: f64,
}

impl Runs {
    /// `count` runs of a tenth of a second at least.
    pub fn new(count: usize) -> Self {
        Self { count, seconds: 0.1 }
    }
}

/// Times what `record` records, again and again in a run until it is long enough: the seconds of one, for
/// each of `runs`.
async fn time(
    gpu: &Gpu,
    runs: Runs,
    mut record: impl FnMut(&mut Recorder) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut run = async |repeats: u32| -> Result<f64> {
        let started = Instant::now();
        let mut rec = Recorder::new(gpu);
        for _ in 0..repeats {
            record(&mut rec)?;
        }
        rec.submit();
        gpu.finished().await?;
        Ok(started.elapsed().as_secs_f64())
    };
    run(1).await?;
    let once = run(1).await?;
    let repeats = (runs.seconds / once.max(1e-6)).ceil().clamp(1.0, 1000.0) as u32;
    let mut seconds = Vec::new();
    for _ in 0..runs.count {
        seconds.push(run(repeats).await? / f64::from(repeats));
    }
    Ok(seconds)
}

#[test]
fn the_median_is_in_the_middle() {
    assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0]), median(&[7.0])], [2.0, 2.5, 7.0]);
    assert!(median(&[]).is_nan());
}
