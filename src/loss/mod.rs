//! Preference losses: what a method learns from, and its formula in f64. The same on the device is
//! `kernels/preference.rs`.

pub mod formula;
mod method;

pub use formula::{Formula, Terms};
pub use method::{Method, Takes};

/// What a loss needs beside the log-probs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The formula.
    pub formula: Formula,
    /// Use mean log-probs per token instead of sums.
    pub length_normalize: bool,
}

impl Loss {
    /// What log-ratios are multiplied with to become rewards, at the most, and whether they are means over an
    /// answer's tokens.
    pub fn reward_scale(&self) -> (f64, bool) {
        let (weight, per_token) = match self.formula {
            Formula::D2o { alpha, beta } => (alpha.max(beta), false),
            Formula::Dpo { beta, .. }
            | Formula::Hinge { beta }
            | Formula::Kto { beta, .. }
            | Formula::Npo { beta } => (beta, false),
            Formula::Ipo { beta }
            | Formula::Simpo { beta, .. }
            | Formula::Orpo { beta }
            | Formula::Simnpo { beta, .. } => (beta, true),
            Formula::Slic { .. } | Formula::Ga | Formula::Ul | Formula::Sft => (1.0, false),
        };
        (weight, per_token || self.length_normalize)
    }

    /// What the formula is told beside its sequences; `kl` is KTO's estimate.
    pub fn terms(&self, kl: f64) -> Terms {
        Terms { length_normalize: self.length_normalize, kl }
    }
}
