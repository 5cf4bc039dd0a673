//! LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Weights;
use crate::config::TargetModules;
use crate::nn::{Entry, Layout};
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
    /// Whether the base model stores its matrices as (inputs, outputs), as GPT-2 does. A fresh adapter takes its model's.
    pub fan_in_fan_out: bool,
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
    target_modules: Value,
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
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    lora_bias: bool,
    /// Read only: written as PEFT's default.
    #[serde(default, skip_serializing)]
    init_lora_weights: Value,
    /// Read only: written as PEFT's default.
    #[serde(default, skip_serializing)]
    layer_replication: Value,
}

/// Ways of PEFT to start an adapter that also change the base model's weights.
const CHANGES_THE_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// What PEFT saves whole beside an adapter for a classifier.
const HEADS: [&str; 2] = ["classifier", "score"];

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
    /// When they are no LoRA adapter, or one with options that change its mathematics (DoRA, biases, saved modules,
    /// ranks that differ between layers).
    pub fn parse(config: (&str, &[u8]), weights: (&'a str, &'a [u8])) -> Result<Self> {
        let (origin, json) = config;
        let fix = "give a plain LoRA adapter in PEFT's format";
        let peft: PeftConfig = serde_json::from_slice(json)
            .map_err(|e| Error::input(origin, "a PEFT adapter_config.json", e, fix))?;
        let start = peft.init_lora_weights.as_str();
        let odd = [
            ("peft_type", peft.peft_type != "LORA"),
            ("bias", peft.bias != "none"),
            ("use_dora", peft.use_dora),
            (
                "modules_to_save",
                peft.modules_to_save.is_some_and(|m| m.iter().any(|name| !HEADS.contains(&name.as_str()))),
            ),
            ("rank_pattern", !peft.rank_pattern.is_empty()),
            ("alpha_pattern", !peft.alpha_pattern.is_empty()),
            ("lora_bias", peft.lora_bias),
            ("init_lora_weights", start.is_some_and(|s| CHANGES_THE_BASE.iter().any(|c| s.starts_with(c)))),
            ("layer_replication", !peft.layer_replication.is_null()),
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
        let spec = LoraSpec {
            r: peft.r,
            lora_alpha,
            lora_dropout: peft.lora_dropout,
            target_modules,
            fan_in_fan_out: peft.fan_in_fan_out,
        };
        Ok(Self { spec, weights })
    }
}

impl Adapter<'_> {
    /// Fails when the adapter has a tensor that `layout`, which was loaded from it, has no place for: it would change nothing.
    pub(crate) fn all_in(&self, layout: &Layout) -> Result<()> {
        let known: HashSet<&str> = layout.entries().iter().map(Entry::name).collect();
        let Some(odd) = self.weights.names().filter(|name| !known.contains(name)).min() else {
            return Ok(());
        };
        let fix = "use an adapter that was made for this model, with LoRA on its linear layers only";
        Err(Error::input(self.weights.origin(), "A and B matrices of the model's linear layers", odd, fix))
    }
}

impl LoraSpec {
    /// adapter_config.json as PEFT writes it. `base` names the base model, `modules` are the leaf names targeted; a judge's head is saved
    /// beside the adapter.
    pub fn to_peft_json(&self, base: &str, modules: &[String], judge: bool) -> String {
        let config = PeftConfig {
            peft_type: "LORA".into(),
            task_type: Some(if judge { "SEQ_CLS" } else { "CAUSAL_LM" }.into()),
            base_model_name_or_path: Some(base.into()),
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            target_modules: modules.into(),
            bias: no_bias(),
            fan_in_fan_out: self.fan_in_fan_out,
            use_rslora: false,
            use_dora: false,
            inference_mode: true,
            modules_to_save: judge.then(|| HEADS.map(String::from).into()),
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            lora_bias: false,
            init_lora_weights: Value::Null,
            layer_replication: Value::Null,
        };
        serde_json::to_string_pretty(&config).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(extra: &str) -> Option<String> {
        let json =
            format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"]{extra}}}"#);
        let data = [0u8; 8];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 1], &data);
        let name = tensor_name("model.layers.0.self_attn.q_proj", 'A');
        let weights = safetensors::serialize([(name, view.unwrap())], None).unwrap();
        Adapter::parse(("config", json.as_bytes()), ("weights", &weights)).err().map(|e| e.to_string())
    }

    #[test]
    fn what_would_change_the_mathematics_is_refused() {
        for (key, value) in [
            ("bias", r#""all""#),
            ("use_dora", "true"),
            ("modules_to_save", r#"["lm_head"]"#),
            ("rank_pattern", r#"{"q_proj":8}"#),
            ("alpha_pattern", r#"{"q_proj":8}"#),
            ("lora_bias", "true"),
            ("init_lora_weights", r#""pissa_niter_4""#),
            ("layer_replication", "[[0,2]]"),
        ] {
            let message = refusal(&format!(r#","{key}":{value}"#)).unwrap_or_default();
            assert!(message.contains(&format!("unsupported \"{key}\"")), "{key}: {message}");
        }
    }

    #[test]
    fn what_peft_writes_by_default_is_taken() {
        let defaults = r#","bias":"none","rank_pattern":{},"alpha_pattern":{},"lora_bias":false,
            "init_lora_weights":true,"layer_replication":null,"modules_to_save":null"#;
        assert_eq!(refusal(defaults), None);
        assert_eq!(refusal(r#","init_lora_weights":"gaussian""#), None);
    }
}
