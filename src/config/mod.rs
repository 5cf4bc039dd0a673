//! A run's settings: a TOML file and flags, merged and checked into one [`RunConfig`].
//!
//! A [`Layer`] holds the settings from one source: every key may be absent, and the place where each key was
//! written is kept for messages. [`RunConfig::resolve`] merges the layers and checks the result, so that no
//! later code sees a setting that is missing or out of range. Field names are those of Hugging Face's
//! transformers, TRL and PEFT.

mod file;
mod preset;
#[macro_use]
mod section;
mod sections;
mod validate;
mod values;

use serde::{Deserialize, Serialize};

use crate::data::Rule;
use crate::error::{Error, Result, setting};
use crate::loss::{Constants, Formula, Loss, Method, Takes};
use crate::optim::LrScheduler;

pub use file::Layer;
pub use sections::*;
pub use values::{
    AnchorChoice, Beta, MemorySize, NegativeChoice, OnlineSampler, OrNone, Overlong, Preset, ReferenceSource,
    TruncationSide,
};

/// A run's settings from one source; every key may be absent. Also declares the flags of `align`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct PartialConfig {
    /// `[model]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Model"))]
    pub model: ModelFlags,
    /// `[data]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Data"))]
    pub data: DataFlags,
    /// `[method]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Method"))]
    pub method: MethodFlags,
    /// `[anchors]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Anchors (the model's own samples)"))]
    pub anchors: AnchorFlags,
    /// `[negatives]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Negatives (flagged answers)"))]
    pub negatives: NegativeFlags,
    /// `[reference]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "References"))]
    pub reference: ReferenceFlags,
    /// `[retain]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Retain term"))]
    pub retain: RetainFlags,
    /// `[lora]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "LoRA"))]
    pub lora: LoraFlags,
    /// `[train]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Training"))]
    pub train: TrainFlags,
    /// `[stop]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Stop rule"))]
    pub stop: StopFlags,
    /// `[output]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "Output"))]
    pub output: OutputFlags,
    /// `[gpu]`
    #[cfg_attr(feature = "clap", command(flatten, next_help_heading = "GPU"))]
    pub gpu: GpuFlags,
}

/// A run's settings, complete and checked. [`RunConfig::resolve`] makes it, [`RunConfig::to_toml`] writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The model that is trained.
    pub model: ModelConfig,
    /// The training and held-out examples.
    pub data: DataConfig,
    /// The loss.
    pub method: MethodConfig,
    /// How anchors are sampled.
    pub anchors: AnchorConfig,
    /// Which flagged answers each step trains on.
    pub negatives: NegativeConfig,
    /// The reference models.
    pub reference: ReferenceConfig,
    /// The term that keeps the answers to ordinary prompts as they are.
    pub retain: RetainConfig,
    /// Which weights are trained.
    pub lora: LoraConfig,
    /// Optimizer, schedule, batches and steps.
    pub train: TrainConfig,
    /// When a run ends early.
    pub stop: StopConfig,
    /// What is written, and where.
    pub output: OutputConfig,
    /// Which GPU is used, and how.
    pub gpu: GpuConfig,
}

/// Calls `$with` once with every section's name and flags type: the only list of sections besides the two
/// structs.
macro_rules! sections {
    ($with:ident) => {
        $with! {
            model: ModelFlags, data: DataFlags, method: MethodFlags, anchors: AnchorFlags,
            negatives: NegativeFlags, reference: ReferenceFlags, retain: RetainFlags, lora: LoraFlags,
            train: TrainFlags, stop: StopFlags, output: OutputFlags, gpu: GpuFlags
        }
    };
}

macro_rules! over_sections {
    ($($section:ident: $flags:ident),*) => {
        impl PartialConfig {
            /// Every section with its keys.
            pub const SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), $flags::KEYS)),*];

            /// The values of `self`, and those of `below` for keys that `self` lacks.
            fn over(self, below: Self) -> Self {
                Self { $($section: self.$section.over(below.$section)),* }
            }

            /// Fills absent keys with their defaults.
            fn or_defaults(self) -> RunConfig {
                RunConfig { $($section: self.$section.or_defaults()),* }
            }

            /// `section.key` of every key that is present.
            pub fn given(&self) -> Vec<String> {
                let mut keys = Vec::new();
                $(
                    let section = stringify!($section);
                    keys.extend(self.$section.given().into_iter().map(|key| format!("{section}.{key}")));
                )*
                keys
            }

            /// The flag of `section.key`, with its dashes; the key itself if it has no flag.
            #[cfg(feature = "clap")]
            pub fn flag(key: &str) -> String {
                $(if let Some(name) = key.strip_prefix(concat!(stringify!($section), ".")) {
                    let command = <$flags as clap::Args>::augment_args(clap::Command::new(""));
                    let index = $flags::KEYS.iter().position(|known| *known == name);
                    let argument = index.and_then(|index| command.get_arguments().nth(index));
                    if let Some(long) = argument.and_then(|argument| argument.get_long()) {
                        return format!("--{long}");
                    }
                })*
                key.into()
            }
        }
    };
}
sections!(over_sections);

impl MethodConfig {
    /// [`beta`](Self::beta), or the method's default. If it is measured, it is 1 until then.
    pub fn beta(&self) -> f64 {
        match self.beta {
            Some(Beta::Of(beta)) => beta,
            _ if self.is_measured() => 1.0,
            Some(Beta::Auto) | None => self.method.default_beta().unwrap_or_default(),
        }
    }

    /// [`alpha`](Self::alpha), or D²O's default for this `beta`.
    pub fn alpha(&self, beta: f64) -> f64 {
        self.alpha.unwrap_or_else(|| Constants::alpha_for(beta))
    }

    /// Whether beta is measured before the first step: for D²O, unless it is given as a number.
    pub fn is_measured(&self) -> bool {
        self.method == Method::D2o && !matches!(self.beta, Some(Beta::Of(_)))
    }

    /// [`gamma`](Self::gamma), or the method's default.
    pub fn gamma(&self) -> f64 {
        self.gamma.or(self.method.default_gamma()).unwrap_or_default()
    }

    /// The method with its constants.
    pub fn loss(&self) -> Loss {
        let (beta, gamma) = (self.beta(), self.gamma());
        let alpha = self.alpha(beta);
        let (desirable_weight, undesirable_weight) = (self.desirable_weight, self.undesirable_weight);
        let formula = match self.method {
            Method::D2o => Formula::D2o { alpha, beta },
            Method::Dpo => Formula::Dpo { beta, label_smoothing: self.label_smoothing },
            Method::Ipo => Formula::Ipo { beta },
            Method::Hinge => Formula::Hinge { beta },
            Method::Slic => Formula::Slic { delta: self.delta, sft_weight: self.sft_weight },
            Method::Simpo => Formula::Simpo { beta, gamma },
            Method::Orpo => Formula::Orpo { beta },
            Method::Kto => Formula::Kto { beta, desirable_weight, undesirable_weight },
            Method::Npo => Formula::Npo { beta },
            Method::Simnpo => Formula::Simnpo { beta, gamma },
            Method::Ga => Formula::Ga,
            Method::Ul => Formula::Ul,
            Method::Sft => Formula::Sft,
        };
        let (length_normalize, negative_floor) = (self.length_normalize, self.negative_floor);
        Loss { formula, length_normalize, negative_floor }
    }
}

impl TrainConfig {
    /// The number of warm-up steps of a run of `total` steps. The first of them has a rate of 0, so a short
    /// run has none unless they are asked for.
    pub fn warmup(&self, total: usize) -> usize {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => steps,
            (None, Some(share)) => (share * total as f64).ceil() as usize,
            (None, None) if self.lr_scheduler_type == LrScheduler::Constant => 0,
            (None, None) => WARMUP_STEPS.min(total / 10),
        }
    }
}

/// Warm-up steps if the settings say nothing.
const WARMUP_STEPS: usize = 3;

impl RunConfig {
    /// The rule that a sampled anchor must follow: `anchor_filter`, or without it, that the answer is not
    /// unwanted.
    pub fn anchor_rule(&self) -> Option<Rule> {
        let unwanted = self.stop.unwanted.as_ref().filter(|_| self.method.method.is_of_negatives());
        self.anchors.anchor_filter.0.clone().or_else(|| unwanted.map(Rule::opposite))
    }

    /// Which flagged answers each step trains on: [`NegativeConfig::choice`], if the method has that choice.
    pub fn negative_choice(&self) -> NegativeChoice {
        use NegativeChoice::*;
        let has = match self.negatives.choice {
            Generated | Debiased | Paired => self.method.method.takes() == Takes::Anchors,
            _ => self.method.method.is_of_negatives(),
        };
        if has { self.negatives.choice } else { Uniform }
    }

    /// Whether a run compares answers or prompts by the model's hidden states.
    pub(crate) fn compares_states(&self) -> bool {
        let anchors = matches!(self.anchors.choice, AnchorChoice::Pu | AnchorChoice::PuWeight);
        let prompts = self.method.method.is_of_negatives() && self.negatives.balance > 0;
        let choice = self.negative_choice();
        (anchors && self.method.method.takes() == Takes::Anchors)
            || prompts
            || matches!(choice, NegativeChoice::Mcns | NegativeChoice::Debiased)
    }

    /// The rule that tells an unwanted answer: `unwanted`, or for methods that learn from flagged answers
    /// alone the opposite of `anchor_filter`.
    pub fn unwanted_rule(&self) -> Option<Rule> {
        let filter = self.anchors.anchor_filter.0.as_ref().filter(|_| self.method.method.is_of_negatives());
        self.stop.unwanted.clone().or_else(|| filter.map(Rule::opposite))
    }

    /// The limit on the KL divergence from the start, [`StopConfig::max_kl`]. It is estimated on the anchors.
    /// With worked examples they are no samples of the model, and are meant to become likelier: no limit.
    pub(crate) fn max_kl(&self) -> f64 {
        if self.anchors.anchor_examples.is_some() { f64::MAX } else { self.stop.max_kl }
    }

    /// The name of the setting that [`RunConfig::anchor_rule`] comes from, in messages.
    pub(crate) fn anchor_rule_setting(&self) -> String {
        setting(if self.anchors.anchor_filter.is_some() { "anchor_filter" } else { "unwanted" })
    }

    /// The most tokens of a retained answer: [`RetainConfig::max_new_tokens`], or that of the anchors.
    pub fn retained_tokens(&self) -> usize {
        self.retain.max_new_tokens.unwrap_or(self.anchors.max_new_tokens)
    }

    /// The peak learning rate: [`TrainConfig::learning_rate`], or the default for the method and for what is
    /// trained. D²O's for LoRA was found on SmolLM2-135M-Instruct; full fine-tuning usually takes a tenth of
    /// LoRA's (Schulman et al., "LoRA Without Regret").
    pub fn learning_rate(&self) -> f64 {
        let of_lora = if self.method.method == Method::D2o { 2e-4 } else { 1e-4 };
        let usual = if self.lora.enabled { of_lora } else { of_lora / 10.0 };
        self.train.learning_rate.unwrap_or(usual)
    }

    /// Merges `layers` (a later one overrides an earlier one), fills in the defaults and checks all values.
    ///
    /// # Errors
    /// [`Error::Input`] names all required settings that are missing, or the first setting that is out of
    /// range and where it was written.
    pub fn resolve(layers: Vec<Layer>) -> Result<Self> {
        let top = layers.into_iter().reduce(|below, above| above.over(below)).unwrap_or_default();
        let config = top.values.or_defaults();
        validate::required(&config)?;
        validate::check(&config, Some(&top.places))?;
        Ok(config)
    }

    /// Checks every setting's range. [`Inputs`](crate::train::Inputs) calls it for every run. Paths may be
    /// empty: a run whose inputs are in memory has none.
    ///
    /// # Errors
    /// [`Error::Input`] names the first setting that is out of range.
    pub fn check(&self) -> Result<()> {
        validate::check(self, None)
    }

    /// The settings as TOML, defaults included: reading it back gives the same settings.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is not UTF-8, the only value that TOML cannot represent.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| {
            Error::input("the run's settings", "text that TOML can represent", error, "use paths in UTF-8")
        })
    }

    /// Warnings about settings that are valid but rarely intended, to be shown before the run.
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }
}

// The tests parse flags too, so they need clap.
#[cfg(all(test, feature = "clap"))]
mod tests;
