//! The methods by name, and the answers that each of them takes.

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
    /// Hinge loss on DPO's log-ratios
    Hinge,
    /// SLiC-HF: hinge loss on log-probs, plus SFT on the chosen answer
    Slic,
    /// SimPO: DPO on mean log-probs with a margin, without a reference
    Simpo,
    /// ORPO: SFT on the chosen answer, plus the odds ratio of the chosen and the flagged answer
    Orpo,
    /// KTO: good and flagged answers, not in pairs
    Kto,
    /// NPO: flagged answers only, with a reference
    Npo,
    /// SimNPO: NPO on mean log-probs, without a reference
    Simnpo,
    /// Gradient ascent on flagged answers only, without a reference
    Ga,
    /// Unlikelihood of each token of flagged answers, without a reference
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
    /// The answers that the method's loss takes.
    pub fn takes(self) -> Takes {
        match self {
            Self::D2o => Takes::Anchors,
            Self::Npo | Self::Simnpo | Self::Ga | Self::Ul => Takes::Negative,
            Self::Dpo | Self::Ipo | Self::Hinge | Self::Slic | Self::Simpo | Self::Orpo => Takes::Pair,
            Self::Sft => Takes::Chosen,
            Self::Kto => Takes::Either,
        }
    }

    /// Whether the method learns from flagged answers without chosen ones. Chosen answers are then only
    /// evaluated.
    pub fn is_of_negatives(self) -> bool {
        matches!(self.takes(), Takes::Anchors | Takes::Negative)
    }

    /// The default beta; `None` if the method has no beta.
    pub fn default_beta(self) -> Option<f64> {
        match self {
            Self::Sft | Self::Ga | Self::Ul | Self::Slic => None,
            Self::Simpo => Some(2.0),
            Self::Simnpo => Some(2.5),
            _ => Some(0.1),
        }
    }

    /// The default gamma; `None` if the method has no gamma.
    pub fn default_gamma(self) -> Option<f64> {
        match self {
            Self::Simpo => Some(1.0),
            Self::Simnpo => Some(0.0),
            _ => None,
        }
    }
}
