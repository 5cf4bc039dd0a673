//! LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

use serde::{Deserialize, Serialize};

use super::Weights;
use crate::config::TargetModules;
use crate::{Error, Result};

/// What a LoRA adapter is; PEFT's names and meanings.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank.
    pub r: usize,
    /// The adapter's output is scaled by lora_alpha / r.
    pub lora_alpha: f64,
    /// Share of an adapter's inputs dropped in training.
    pub lora_dropout: f64,
    /// Layers that get one.
    pub target_modules: TargetModules,
}

/// The keys of adapter_config.json that matter here. What is left out has PEFT's default.
#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    task_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: serde_json::Value,
    #[serde(default = "no_bias")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
}

fn no_bias() -> String {
    "none".into()
}

/// The module of an adapter's A matrix, from PEFT's tensor name.
pub(super) fn module_of(tensor: &str) -> Option<&str> {
    tensor.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")
}

/// What PEFT's `target_modules` should say of `modules`: the last part of a name where every block (or the head) has an
/// adapter there, else whole names.
pub(super) fn leaves(modules: &[String], blocks: usize) -> Vec<String> {
    let leaf = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let whole = |module: &str| {
        let same = modules.iter().filter(|m| leaf(m) == leaf(module)).count();
        same == blocks || !module.contains('.')
    };
    let mut names: Vec<String> = modules.iter().map(|m| if whole(m) { leaf(m) } else { m.clone() }).collect();
    names.sort();
    names.dedup();
    names
}

/// An adapter's description and weights, as read from files.
pub struct Adapter<'a> {
    /// What it is.
    pub spec: LoraSpec,
    /// Its tensors.
    pub weights: Weights<'a>,
}

/// PEFT's name of a module's A or B matrix.
pub(super) fn tensor_name(module: &str, matrix: char) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

impl<'a> Adapter<'a> {
    /// Reads adapter_config.json and adapter_model.safetensors, each with a display name.
    ///
    /// # Errors
    /// When they are no LoRA adapter, or one with options that change its mathematics (DoRA, biases, saved modules).
    pub fn parse(config: (&str, &[u8]), weights: (&'a str, &'a [u8])) -> Result<Self> {
        let (origin, json) = config;
        let fix = "give a plain LoRA adapter in PEFT's format";
        let peft: PeftConfig = serde_json::from_slice(json)
            .map_err(|e| Error::input(origin, "a PEFT adapter_config.json", e, fix))?;
        let odd = [
            ("peft_type", peft.peft_type != "LORA"),
            ("bias", peft.bias != "none"),
            ("fan_in_fan_out", peft.fan_in_fan_out),
            ("use_dora", peft.use_dora),
            ("modules_to_save", peft.modules_to_save.is_some_and(|m| !m.is_empty())),
        ];
        if let Some((key, _)) = odd.iter().find(|(_, odd)| *odd) {
            return Err(Error::input(
                origin,
                "a plain LoRA adapter",
                format!("an unsupported \"{key}\""),
                fix,
            ));
        }
        if peft.r == 0 || !peft.lora_alpha.is_finite() || !(0.0..1.0).contains(&peft.lora_dropout) {
            let found =
                format!("r {}, lora_alpha {}, lora_dropout {}", peft.r, peft.lora_alpha, peft.lora_dropout);
            return Err(Error::input(
                origin,
                "r >= 1, a finite lora_alpha, lora_dropout in [0, 1)",
                found,
                fix,
            ));
        }
        let weights = Weights::parse([weights], weights.0)?;
        // The tensors say best which modules it has; the config may hold a pattern.
        let mut modules: Vec<String> = weights.names().filter_map(module_of).map(str::to_string).collect();
        modules.sort();
        if modules.is_empty() {
            return Err(Error::input(weights.origin(), "tensors named *.lora_A.weight", "none", fix));
        }
        // rsLoRA scales by alpha / sqrt(r): say so in terms of the plain form.
        let lora_alpha =
            if peft.use_rslora { peft.lora_alpha * (peft.r as f64).sqrt() } else { peft.lora_alpha };
        let target_modules = TargetModules::Names(modules);
        let spec = LoraSpec { r: peft.r, lora_alpha, lora_dropout: peft.lora_dropout, target_modules };
        Ok(Self { spec, weights })
    }
}

impl LoraSpec {
    /// adapter_config.json as PEFT writes it. `base` names the base model, `modules` are the leaf names targeted.
    pub fn to_peft_json(&self, base: &str, modules: &[String]) -> String {
        let config = PeftConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            target_modules: modules.into(),
            bias: no_bias(),
            fan_in_fan_out: false,
            use_rslora: false,
            use_dora: false,
            inference_mode: true,
            modules_to_save: None,
        };
        serde_json::to_string_pretty(&config).unwrap_or_default() + "\n"
    }
}
