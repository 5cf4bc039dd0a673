//! D²O's constants, measured from the distance between the anchors and the model.

use serde::{Deserialize, Serialize};

/// The weights of D²O.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constants {
    /// Weight of the negative's log-ratio.
    pub alpha: f64,
    /// Weight of the mean of the anchors' log-ratios.
    pub beta: f64,
}

/// The log-ratio of the anchors times beta at which the loss rests, in nats.
const RESTS_AT: f64 = 2.0;

impl Constants {
    /// The constants for anchors that are `nats` likelier, as whole answers, with what was put before the
    /// prompt for sampling them than without it.
    ///
    /// The loss rests when β times the anchors' log-ratio is a few nats, so β must leave room for the
    /// distance that they have to travel: β = 2 / nats, from 0.1 to 1. Anchors that the model gives by itself
    /// (0 nats) cannot rise: with β below 1 the negative alone would lower the loss, and break the model.
    /// Found on SmolLM2-135M-Instruct.
    pub fn measured(nats: f64) -> Self {
        let beta = (RESTS_AT / nats.max(RESTS_AT)).max(0.1);
        Self { alpha: Self::alpha_for(beta), beta }
    }

    /// The usual alpha for this beta, β^1.5 and at most 1: where anchors can rise, most of the change should
    /// be theirs.
    pub fn alpha_for(beta: f64) -> f64 {
        beta.min(1.0).powf(1.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_from_the_distance() {
        let at = |nats: f64| {
            let Constants { alpha, beta } = Constants::measured(nats);
            [alpha, beta].map(|x| (x * 1000.0).round() / 1000.0)
        };
        assert_eq!([at(-3.0), at(0.0), at(2.0)], [[1.0, 1.0]; 3]);
        assert_eq!(at(8.0), [0.125, 0.25]);
        assert_eq!([at(20.0), at(300.0)], [[0.032, 0.1]; 2]);
    }
}
