//! Types of settings that are neither numbers nor paths.

use std::fmt::Display;
use std::ops::Deref;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Declares an enum whose variants have the same snake_case names in a file and as a flag's value.
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
    /// The side on which a prompt that is too long is cut.
    TruncationSide {
        /// Cut off the beginning
        Left,
        /// Cut off the end
        Right,
    }
}

choice! {
    /// What happens to an example whose prompt or answer is too long.
    Overlong {
        /// Truncate it; a truncated answer has no end-of-turn token
        Cut,
        /// Leave the example out
        Drop,
        /// Stop with an error
        Error,
    }
}

choice! {
    /// The model that samples online anchors, and with which prompt.
    OnlineSampler {
        /// The anchors' reference model, with the safety instruction
        Reference,
        /// The model in training, without the safety instruction
        Policy,
        /// The model in training, with the safety instruction
        PolicyWithInstruction,
    }
}

/// Which of the sampled anchors are used.
///
/// As text `all`, `pu`, `pu_weight`, or `meter:METER`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AnchorChoice {
    /// All of them.
    All,
    /// Those that are least like the flagged answers; how many are left out is estimated.
    Pu,
    /// All, each weighed by the probability that it is good.
    PuWeight,
    /// Those that this meter does not call bad.
    Meter(String),
}

impl FromStr for AnchorChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("meter:")) {
            ("all", _) => Ok(Self::All),
            ("pu", _) => Ok(Self::Pu),
            ("pu_weight", _) => Ok(Self::PuWeight),
            (_, Some(meter)) if !meter.is_empty() => Ok(Self::Meter(meter.into())),
            _ => Err("expected all, pu, pu_weight or meter:METER".into()),
        }
    }
}

impl TryFrom<String> for AnchorChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AnchorChoice> for String {
    fn from(choice: AnchorChoice) -> Self {
        match choice {
            AnchorChoice::All => "all".into(),
            AnchorChoice::Pu => "pu".into(),
            AnchorChoice::PuWeight => "pu_weight".into(),
            AnchorChoice::Meter(meter) => format!("meter:{meter}"),
        }
    }
}

choice! {
    /// Which flagged answers a step trains on.
    NegativeChoice {
        /// All rows in turn
        Uniform,
        /// Of four times as many rows, those whose flagged answer the model finds likeliest now
        Hard,
        /// Of four times as many rows, those that are likely and whose log-prob varied most over the run
        Variance,
        /// For each prompt one of the flagged answers to any prompt, often a near one, by Metropolis-Hastings
        Mcns,
        /// Also the model's own answers under --harmful-instruction that are judged to be bad
        Generated,
        /// All rows but those whose flagged answer is most like the anchors, as many as are estimated
        Debiased,
        /// All rows; a flagged answer that the model finds likely weighs more if its anchors are unlikely
        Paired,
    }
}

choice! {
    /// Settings for a case, below those of a file and of flags.
    Preset {
        /// A habit that the model's own answers show now and then; the defaults
        Habit,
        /// Harmful requests that the model answers, and is to refuse
        Refuse,
        /// The constants of D²O's paper
        Paper,
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
    /// The LoRA adapter, or with full training the model, in this directory.
    Checkpoint(PathBuf),
    /// A copy of the policy, renewed every this many optimizer steps.
    CopyEvery(usize),
    /// The policy's exponential moving average: `reference = decay * reference + (1 - decay) * policy` after
    /// each step.
    Ema(f64),
}

impl ReferenceSource {
    /// Whether it never changes during a run, so that its log-probs need computing only once.
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

/// The setting `beta`: a number, or "auto".
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beta {
    /// Measured before the first step; see [`Constants::measured`](crate::loss::Constants::measured).
    Auto,
    /// This number.
    Of(f64),
}

impl Serialize for Beta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Of(number) => serializer.serialize_f64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Beta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrAuto;
        impl Visitor<'_> for NumberOrAuto {
            type Value = Beta;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number or \"auto\"")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Beta, E> {
                Ok(Beta::Of(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Beta, E> {
                Ok(Beta::Of(number as f64))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Beta, E> {
                Ok(Beta::Of(number as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Beta, E> {
                match text {
                    "auto" => Ok(Beta::Auto),
                    _ => Err(E::invalid_type(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrAuto)
    }
}

impl FromStr for Beta {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Of).map_err(|_| "expected a number or auto".into()),
        }
    }
}

/// A setting that "none" turns off, so that a file or a flag can take away what a preset has set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    try_from = "String",
    into = "String",
    bound(serialize = "T: Clone + Into<String>", deserialize = "T: FromStr, T::Err: Display")
)]
pub struct OrNone<T>(pub Option<T>);

impl<T> Deref for OrNone<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl<T: FromStr> TryFrom<String> for OrNone<T> {
    type Error = T::Err;

    fn try_from(text: String) -> Result<Self, T::Err> {
        text.parse()
    }
}

impl<T: Into<String>> From<OrNone<T>> for String {
    fn from(setting: OrNone<T>) -> Self {
        setting.0.map_or("none".into(), Into::into)
    }
}

/// A memory size with a unit, such as `4GB`, `3.5GiB` or `800MB`; keeps the text as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize {
    text: String,
    bytes: u64,
}

impl MemorySize {
    /// A size of `bytes` bytes.
    pub fn of(bytes: u64) -> Self {
        Self { text: format!("{}KiB", bytes as f64 / 1024.0), bytes }
    }

    /// The size in bytes.
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
            None => Err(format!("{text:?} is not a size: expected a number and a unit, as in 4GB or 800MiB")),
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

/// Parses a switch whose flag means the opposite of its key: `--full` is `lora.enabled = false`.
#[cfg(feature = "clap")]
pub(super) fn inverted(text: &str) -> Result<bool, String> {
    text.parse::<bool>().map(|value| !value).map_err(|_| "expected true or false".into())
}
