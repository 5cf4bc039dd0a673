//! Preference losses: the answers that each method takes, and its formula in f64; and the retain term.
//! `kernels/preference.rs` and `kernels/retain.rs` compute the same on the device.

mod constants;
pub mod formula;
mod method;
mod retain;

pub use constants::Constants;
pub use formula::{Formula, Terms};
pub use method::{Method, Takes};
pub use retain::Retain;

/// A loss: its formula and options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The formula.
    pub formula: Formula,
    /// Use mean log-probs per token instead of sums.
    pub length_normalize: bool,
    /// See [`Terms::negative_floor`].
    pub negative_floor: Option<f64>,
}

impl Loss {
    /// The loss with other weights, if it is D²O's.
    pub fn with(self, Constants { alpha, beta }: Constants) -> Self {
        match self.formula {
            Formula::D2o { .. } => Self { formula: Formula::D2o { alpha, beta }, ..self },
            _ => self,
        }
    }

    /// The largest factor by which log-ratios are multiplied to become rewards, and whether the log-ratios
    /// are means over an answer's tokens.
    pub fn reward_scale(&self) -> (f64, bool) {
        let (weight, per_token) = match self.formula {
            Formula::D2o { alpha, beta } => (alpha.max(beta), false),
            Formula::Dpo { beta, .. }
            | Formula::Hinge { beta }
            | Formula::Ipo { beta }
            | Formula::Kto { beta, .. }
            | Formula::Npo { beta } => (beta, false),
            Formula::Simpo { beta, .. } | Formula::Orpo { beta } | Formula::Simnpo { beta, .. } => {
                (beta, true)
            }
            Formula::Slic { .. } | Formula::Ga | Formula::Ul | Formula::Sft => (1.0, false),
        };
        (weight, per_token || self.length_normalize)
    }

    /// The formula's inputs other than its sequences. `kl` is KTO's estimate.
    pub fn terms(&self, kl: f64) -> Terms {
        Terms { length_normalize: self.length_normalize, kl, negative_floor: self.negative_floor }
    }
}
