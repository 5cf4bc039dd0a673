//! The settings that are neither numbers nor paths.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Declares an enum whose variants read the same in a file and as a flag, in snake_case.
macro_rules! choice {
    ($(#[doc = $about:tt])* $name:ident { $($(#[doc = $doc:tt])* $variant:ident),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }
    };
}

choice! {
    /// The loss.
    Method {
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
}

/// The answers that a method's loss takes of an example.
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

    /// Whether it learns from flagged answers alone: good ones, where they are given, only watch.
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

choice! {
    /// The side on which a long prompt is cut.
    TruncationSide {
        /// The beginning goes
        Left,
        /// The end goes
        Right,
    }
}

choice! {
    /// What happens to an answer that is too long.
    Overlong {
        /// Score its beginning, without an end-of-turn token
        Cut,
        /// Leave the example out
        Drop,
        /// Stop with an error
        Error,
    }
}

choice! {
    /// Who samples online anchors.
    OnlineSampler {
        /// The reference model under the anchors, with the safety instruction
        Reference,
        /// The model in training, on the bare prompt
        Policy,
        /// The model in training, with the safety instruction
        PolicyWithInstruction,
    }
}

choice! {
    /// The course of the learning rate, with transformers' names and meaning.
    LrScheduler {
        /// Warm-up, then down to 0 in a straight line
        Linear,
        /// Warm-up, then down to 0 along half a cosine
        Cosine,
        /// The same rate from the first step to the last
        Constant,
        /// Warm-up, then the same rate to the last step
        ConstantWithWarmup,
    }
}

/// Where a reference model comes from.
///
/// In TOML `"initial"`, `{ checkpoint = "DIR" }`, `{ copy_every = N }` or `{ ema = DECAY }`; as a flag
/// `initial`, `checkpoint:DIR`, `copy:N` or `ema:DECAY`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceSource {
    /// The model at step 0.
    Initial,
    /// The adapter, or model, in this directory.
    Checkpoint(PathBuf),
    /// A copy of the policy, renewed every so many steps.
    CopyEvery(usize),
    /// The policy's exponential moving average: `reference = decay * reference + (1 - decay) * policy` after
    /// each step.
    Ema(f64),
}

impl ReferenceSource {
    /// Whether it stays what it was at step 0, so that its log-probs can be computed once.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Initial | Self::Checkpoint(_))
    }
}

impl FromStr for ReferenceSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |what: &str| format!("{what} is not a number");
        match text.split_once(':') {
            None if text == "initial" => Ok(Self::Initial),
            Some(("checkpoint", path)) if !path.is_empty() => Ok(Self::Checkpoint(path.into())),
            Some(("copy", steps)) => steps.parse().map(Self::CopyEvery).map_err(|_| number(steps)),
            Some(("ema", decay)) => decay.parse().map(Self::Ema).map_err(|_| number(decay)),
            _ => Err("expected initial, checkpoint:DIR, copy:N or ema:DECAY".into()),
        }
    }
}

/// An amount of memory, as it was written: `4GB`, `3.5GiB`, `800MB`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize {
    text: String,
    bytes: u64,
}

impl MemorySize {
    /// So many bytes.
    pub fn of(bytes: u64) -> Self {
        Self { text: format!("{}KiB", bytes as f64 / 1024.0), bytes }
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 6] = [
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
            ("KB", 1_000),
        ];
        let unit = UNITS.iter().find_map(|(unit, size)| {
            let at = text.len().checked_sub(unit.len())?;
            let (number, ending) = (text.get(..at)?, text.get(at..)?);
            ending.eq_ignore_ascii_case(unit).then_some((number, *size))
        });
        let bytes = unit.and_then(|(number, size)| Some(number.trim().parse::<f64>().ok()? * size as f64));
        match bytes.filter(|bytes| bytes.is_finite() && *bytes >= 1.0) {
            Some(bytes) => Ok(Self { text: text.into(), bytes: bytes as u64 }),
            None => Err(format!("{text:?} is no size: expected a number and a unit, as in 4GB or 800MiB")),
        }
    }
}

impl TryFrom<String> for MemorySize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.text
    }
}

impl std::fmt::Display for MemorySize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which linear layers get an adapter, with PEFT's meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "TargetModulesForm", into = "TargetModulesForm")]
pub enum TargetModules {
    /// Every linear layer but the output head.
    AllLinear,
    /// The layers with one of these names.
    Names(Vec<String>),
}

/// How [`TargetModules`] is written: a list, or one text.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a list of names, or \"all-linear\"")]
enum TargetModulesForm {
    Text(String),
    List(Vec<String>),
}

impl From<TargetModulesForm> for TargetModules {
    fn from(form: TargetModulesForm) -> Self {
        match form {
            TargetModulesForm::Text(text) => Self::from(text.as_str()),
            TargetModulesForm::List(names) => Self::Names(names),
        }
    }
}

impl From<TargetModules> for TargetModulesForm {
    fn from(modules: TargetModules) -> Self {
        match modules {
            TargetModules::AllLinear => Self::Text("all-linear".into()),
            TargetModules::Names(names) => Self::List(names),
        }
    }
}

impl From<&str> for TargetModules {
    /// "all-linear", or names with commas between them.
    fn from(text: &str) -> Self {
        match text {
            "all-linear" => Self::AllLinear,
            names => Self::Names(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

impl Default for TargetModules {
    /// The seven projections of a Llama block.
    fn default() -> Self {
        Self::from("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    }
}

impl TargetModules {
    /// Whether the layer at `path` (as in `model.layers.0.self_attn.q_proj`) gets an adapter: like PEFT, a
    /// name matches the whole path or its end after a dot.
    pub fn selects(&self, path: &str) -> bool {
        let ends_with =
            |name: &str| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match self {
            // The output head, by either of its names.
            Self::AllLinear => !ends_with("lm_head") && !ends_with("embed_out"),
            Self::Names(names) => names.iter().any(|name| ends_with(name)),
        }
    }
}

/// Reads a switch whose flag says the opposite of its key: `--full` is `lora.enabled = false`.
#[cfg(feature = "clap")]
pub(super) fn inverted(text: &str) -> Result<bool, String> {
    text.parse::<bool>().map(|value| !value).map_err(|_| "expected true or false".into())
}
