//! The methods by name, and which answers each of them takes.

use serde::{Deserialize, Serialize};

/// The loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Method {
    /// D²O: a flagged answer against the model's own samples
    D2o,
    /// DPO: a flagged answer against a chosen one
    Dpo,
    /// IPO: DPO with a squared loss on mean log-ratios
    Ipo,
    /// DPO's log-ratios in a hinge
    Hinge,
    /// SLiC-HF: a hinge on log-probs, and imitation of the chosen answer
    Slic,
    /// SimPO: DPO on mean log-probs with a margin, without a reference
    Simpo,
    /// ORPO: imitation of the chosen answer, and its odds against the flagged one's
    Orpo,
    /// KTO: good and flagged answers that need not be pairs
    Kto,
    /// NPO: flagged answers alone, held back by a reference
    Npo,
    /// SimNPO: NPO on mean log-probs, without a reference
    Simnpo,
    /// Gradient ascent: flagged answers alone, without any hold
    Ga,
    /// Unlikelihood: flagged answers' tokens, one by one
    Ul,
    /// Supervised fine-tuning on the chosen answers
    Sft,
}

/// The answers of an example that a method's loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// The model's own samples and the flagged answer.
    Anchors,
    /// The flagged answer.
    Negative,
    /// The chosen and the flagged answer.
    Pair,
    /// The chosen answer.
    Chosen,
    /// A chosen or a flagged answer.
    Either,
}

impl Method {
    /// What its loss takes.
    pub fn takes(self) -> Takes {
        match self {
            Self::D2o => Takes::Anchors,
            Self::Npo | Self::Simnpo | Self::Ga | Self::Ul => Takes::Negative,
            Self::Dpo | Self::Ipo | Self::Hinge | Self::Slic | Self::Simpo | Self::Orpo => Takes::Pair,
            Self::Sft => Takes::Chosen,
            Self::Kto => Takes::Either,
        }
    }

    /// Whether it learns from flagged answers without chosen ones. Where those are given, they are only
    /// monitored.
    pub fn is_of_negatives(self) -> bool {
        matches!(self.takes(), Takes::Anchors | Takes::Negative)
    }

    /// Its usual beta; `None` where it has none.
    pub fn default_beta(self) -> Option<f64> {
        match self {
            Self::Sft | Self::Ga | Self::Ul | Self::Slic => None,
            Self::Simpo => Some(2.0),
            Self::Simnpo => Some(2.5),
            _ => Some(0.1),
        }
    }

    /// Its usual gamma; `None` where it has none.
    pub fn default_gamma(self) -> Option<f64> {
        match self {
            Self::Simpo => Some(1.0),
            Self::Simnpo => Some(0.0),
            _ => None,
        }
    }
}
