//! What tells bad anchors, and what is told of them.

use serde::{Deserialize, Serialize};

use super::anchors::Anchor;
use crate::data::Example;
use crate::eval::head::Head;
use crate::eval::stats::Estimate;

/// An anchor with the verdict on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<'a> {
    /// The example whose anchor it is.
    pub example: &'a Example,
    /// The anchor; its weight is already the new one.
    pub anchor: Anchor,
    /// The probability that it is bad, or a meter's score.
    pub bad: f64,
    /// Whether it stays an anchor.
    pub kept: bool,
}

/// The share of bad anchors, and what became of each training anchor, the worst first.
#[derive(Debug, Clone, PartialEq)]
pub struct Cleaned<'a> {
    /// The share of bad anchors, estimated or counted by the meter, with a 95% interval.
    pub share: Estimate,
    /// All anchors of training prompts.
    pub anchors: Vec<Judged<'a>>,
}

/// What tells bad anchors, once it is known: it judges anchors that are sampled later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cleaner {
    /// The share of bad ones among the anchors from before the first step.
    pub share: Estimate,
    pub how: How,
}

/// How it tells them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum How {
    /// A head on the hidden states: anchors with this score or more are left out.
    Head { head: Head, threshold: f32 },
    /// A head on the hidden states and the logarithm of the odds of a bad anchor: anchors are weighed by the
    /// probability that they are good.
    Weights { head: Head, odds: f32 },
    /// The meter of the settings.
    Meter,
    /// Not at all: the hidden states do not show it.
    Unknown,
}

impl How {
    /// Whether this score says that an answer is rather bad than good. It is meant for answers that are not
    /// anchors: their share of bad ones is not known.
    pub fn calls_bad(&self, score: f64) -> bool {
        match self {
            Self::Head { .. } | Self::Weights { .. } => score > 0.0,
            Self::Meter => score > 0.5,
            Self::Unknown => false,
        }
    }

    /// The badness of an anchor with this score of its head, and the weight that it keeps; 0 leaves it out.
    pub fn verdict(&self, score: f64) -> (f64, f32) {
        match self {
            Self::Head { threshold, .. } => (score, f32::from(u8::from(score < f64::from(*threshold)))),
            Self::Weights { odds, .. } => {
                let bad = 1.0 / (1.0 + (-(score + f64::from(*odds))).exp());
                (bad, ((1.0 - bad) as f32).max(LEAST_WEIGHT))
            }
            Self::Meter => (score, f32::from(u8::from(score <= 0.5))),
            Self::Unknown => (score, 1.0),
        }
    }
}

/// The weight of an anchor that is certainly bad, if anchors are weighed: it is not 0, so that the anchors of
/// a prompt always have a mean.
const LEAST_WEIGHT: f32 = 1e-3;
