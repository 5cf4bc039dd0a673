//! The retain term: a second loss on the model's own answers to ordinary prompts, which keeps them as they
//! were while a preference loss changes others.

use serde::{Deserialize, Serialize};

/// The form of the retain term. Each is a mean over an answer's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Retain {
    /// No retain term
    None,
    /// Supervised fine-tuning on the answers, as in Maini et al., arXiv 2401.06121 (gradient difference)
    Sft,
    /// The KL divergence from the model before training, estimated on the answers
    Kl,
}

impl Retain {
    /// The loss of a token, from its log-prob under the model and under the model before training.
    ///
    /// `Kl` is e^d − 1 − d with d = logp − start, which is never negative. Its mean over tokens sampled from
    /// the model before training is KL(start ‖ model) (Schulman, "Approximating KL Divergence").
    pub fn loss(self, logp: f64, start: f64) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Sft => -logp,
            Self::Kl => (logp - start).exp_m1() - (logp - start),
        }
    }

    /// The derivative of [`Retain::loss`] in `logp`.
    pub fn slope(self, logp: f64, start: f64) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Sft => -1.0,
            Self::Kl => (logp - start).exp_m1(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_losses() {
        for retain in [Retain::None, Retain::Sft, Retain::Kl] {
            for (logp, start) in [(-1.0, -1.0), (-0.5, -2.0), (-7.0, -0.25), (-3.0, -3.001)] {
                let h = 1e-5;
                let found = (retain.loss(logp + h, start) - retain.loss(logp - h, start)) / (2.0 * h);
                let expected = retain.slope(logp, start);
                assert!((found - expected).abs() < 1e-8, "{retain:?} {logp} {start}: {found} {expected}");
            }
        }
        assert_eq!((Retain::Kl.loss(-2.0, -2.0), Retain::Kl.slope(-2.0, -2.0)), (0.0, 0.0));
        // The mean over the start's own distribution is the KL divergence.
        let (start, model) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.2, 0.6]);
        let pairs = || start.iter().zip(model);
        let estimate: f64 = pairs().map(|(p, q)| p * Retain::Kl.loss(q.ln(), p.ln())).sum();
        let exact: f64 = pairs().map(|(p, q)| p * (p / q).ln()).sum();
        assert!((estimate - exact).abs() < 1e-12, "{estimate} {exact}");
    }
}
