//! The measurements of `aweigh bench`, of one adapter's speed. Single kernels are compared with the adapter's
//! own peak, and whole steps are timed.
//!
//! Every result lists all its runs, as seconds or as rates; readers take the median. The first run compiles
//! shaders and is not in the list.

mod rates;
mod roofline;
mod steps;
mod synthetic;
mod tune;

pub use rates::{Peak, Rate, attention, matmul, peak};
pub use roofline::{Bound, CARDS, Card, Counting, Roofline, roofline};
pub use steps::{GroupTimes, Held, SamplingTimes, StepTimes, group, sampling, step};
pub use synthetic::{SHAPES, Synthetic};
pub use tune::{Product, products, tune};

use web_time::Instant;

use crate::Result;
use crate::gpu::{Gpu, Recorder};

/// The median of the values: for an even number the mean of the two in the middle, and NaN if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    0.5 * (middle((sorted.len().saturating_sub(1)) / 2) + middle(sorted.len() / 2))
}

/// The number and the least length of timed runs.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// Runs whose seconds are kept.
    pub count: usize,
    /// The least length of a run, in seconds. Short work is repeated within a run, up to 1000 times, so that
    /// the clock and the submit do not affect the result.
    pub seconds: f64,
}

impl Runs {
    /// `count` runs, with 0.1 seconds as the least length of each.
    pub fn new(count: usize) -> Self {
        Self { count, seconds: 0.1 }
    }
}

/// Times the commands that `record` records. Each run repeats it until the run is long enough. Returns the
/// seconds of one repetition, for each of `runs`.
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
