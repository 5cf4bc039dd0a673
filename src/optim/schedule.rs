//! Learning-rate schedules, with the names and formulas of Hugging Face's `get_scheduler`.

use serde::{Deserialize, Serialize};

/// The shape of a learning-rate schedule, with transformers' names and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum LrScheduler {
    /// Warm-up, then linear decay to 0
    Linear,
    /// Warm-up, then cosine decay to 0
    Cosine,
    /// Constant, without warm-up
    Constant,
    /// Warm-up, then constant
    ConstantWithWarmup,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: LrScheduler,
    /// The highest rate.
    pub peak: f64,
    /// Steps of linear warm-up from 0.
    pub warmup: usize,
    /// Total number of steps.
    pub total: usize,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let left = self.total.saturating_sub(step) as f64;
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        self.peak
            * match self.kind {
                LrScheduler::Constant | LrScheduler::ConstantWithWarmup => 1.0,
                LrScheduler::Linear => left / span,
                LrScheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left / span)).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: LrScheduler) -> Vec<f64> {
        let schedule = Schedule { kind, peak: 1.0, warmup: 2, total: 6 };
        (0..6).map(|step| schedule.rate(step)).collect()
    }

    #[test]
    fn the_courses_are_those_of_transformers() {
        assert_eq!(rates(LrScheduler::Linear), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(LrScheduler::ConstantWithWarmup), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
        let cosine = rates(LrScheduler::Cosine);
        assert!((cosine[3] - 0.853_553_390_593_273_7).abs() < 1e-12 && (cosine[4] - 0.5).abs() < 1e-12);
    }
}
