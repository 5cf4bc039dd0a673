//! LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lora::{LoraSpec, Ordered, Pattern, written};
use super::{TargetModules, Weights};
use crate::nn::{Entry, Layout};
use crate::{Error, Result};

/// PEFT's name of a classifier's head that is saved with an adapter.
pub(super) const PEFT_SCORE: &str = "base_model.model.score.weight";

/// Which weights are trained.
pub enum Training<'a> {
    /// None: sampling and scoring.
    None,
    /// All of them.
    Full,
    /// A fresh adapter: A from Kaiming's uniform distribution (PEFT's default), B zero.
    Lora(LoraSpec, u32),
    /// An adapter from files.
    Adapter(&'a Adapter<'a>),
}

/// The keys of adapter_config.json that matter here. A missing key has PEFT's default.
#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: Option<String>,
    task_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    target_modules: Option<Value>,
    bias: Option<String>,
    fan_in_fan_out: Option<bool>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    inference_mode: Option<bool>,
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<Ordered<usize>>,
    alpha_pattern: Option<Ordered<f64>>,
    lora_bias: Option<bool>,
    /// Only read. It is not written, which means PEFT's default.
    #[serde(skip_serializing)]
    init_lora_weights: Option<Value>,
    /// All other keys.
    #[serde(flatten, skip_serializing)]
    others: Map<String, Value>,
}

/// PEFT's ways to initialise an adapter that also change the base model's weights.
const CHANGES_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// PEFT's keys that describe how an adapter was made or is to be trained. They do not change its results.
const OF_THE_MAKING: [&str; 16] = [
    "velora_config",
    "auto_mapping",
    "revision",
    "peft_version",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "ensure_weight_tying",
    "qalora_group_size",
];

/// Whether the value means that the option is off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The modules that PEFT saves as a whole with an adapter for a classifier.
const HEADS: [&str; 2] = ["classifier", "score"];

/// The module of an adapter's A matrix, from PEFT's tensor name.
pub(super) fn module_of(tensor: &str) -> Option<&str> {
    tensor.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")
}

/// The entries of PEFT's `target_modules` for `modules`: only the last part of a name if all of the model's
/// linear layers with that last part have an adapter, otherwise the whole name.
pub(super) fn leaves(modules: &[String], all: &[String]) -> Vec<String> {
    let leaf = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let every = |module: &String| {
        let own = leaf(module);
        all.iter().filter(|other| leaf(other) == own).all(|other| modules.contains(other))
    };
    let mut names: Vec<String> = modules.iter().map(|m| if every(m) { leaf(m) } else { m.clone() }).collect();
    names.sort();
    names.dedup();
    names
}

/// A LoRA adapter's settings and tensors, as read from files.
pub struct Adapter<'a> {
    /// The adapter's settings.
    pub spec: LoraSpec,
    /// The base model's name, as in the adapter's file.
    pub base: Option<String>,
    /// Unknown keys of the adapter's configuration that are set to a number or a string. They are ignored.
    pub unknown: Vec<String>,
    /// The adapter's tensors.
    pub weights: Weights<'a>,
}

/// PEFT's name of a module's A or B matrix.
pub(super) fn tensor_name(module: &str, matrix: char) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

impl<'a> Adapter<'a> {
    /// Reads adapter_config.json and adapter_model.safetensors, each with a name for messages.
    ///
    /// # Errors
    /// When they are not a LoRA adapter, or when an option is on that changes the adapter's results and is
    /// not implemented (DoRA, biases, saved modules, activated LoRA), or an unknown option is on.
    pub fn parse(config: (&str, &[u8]), weights: (&'a str, &'a [u8])) -> Result<Self> {
        let (origin, json) = config;
        let fix = "give a plain LoRA adapter in PEFT's format";
        let peft: PeftConfig = serde_json::from_slice(json)
            .map_err(|e| Error::input(origin, "a PEFT adapter_config.json", e, fix))?;
        if peft.others.contains_key("lora_parameters") {
            let fix = "convert the adapter to PEFT's format";
            return Err(Error::input(origin, "a PEFT adapter_config.json", "one in MLX's format", fix));
        }
        let start = peft.init_lora_weights.as_ref().and_then(Value::as_str);
        let beside = |name: &String| !HEADS.contains(&name.as_str());
        let odd = [
            ("peft_type", peft.peft_type.as_deref() != Some("LORA")),
            ("bias", peft.bias.is_some_and(|bias| bias != "none")),
            ("use_dora", peft.use_dora == Some(true)),
            ("modules_to_save", peft.modules_to_save.is_some_and(|modules| modules.iter().any(beside))),
            ("lora_bias", peft.lora_bias == Some(true)),
            ("init_lora_weights", start.is_some_and(|s| CHANGES_THE_BASE.iter().any(|c| s.starts_with(c)))),
        ];
        let others = || peft.others.iter().filter(|(key, _)| !OF_THE_MAKING.contains(&key.as_str()));
        // Numbers and strings mostly belong to a switch and do nothing by themselves.
        let switch = |value: &Value| !is_off(value) && !value.is_number() && !value.is_string();
        let odd = odd.iter().find(|(_, odd)| *odd).map(|(key, _)| *key);
        let odd = odd.or_else(|| others().find(|(_, value)| switch(value)).map(|(key, _)| key.as_str()));
        if let Some(key) = odd {
            let found = format!("an unsupported \"{key}\", which is switched on");
            return Err(Error::input(origin, "a plain LoRA adapter", found, fix));
        }
        let unknown = others().filter(|(_, value)| !is_off(value)).map(|(key, _)| key.clone()).collect();
        let usual = LoraSpec::default();
        let mut spec = LoraSpec {
            r: peft.r.unwrap_or(usual.r),
            lora_alpha: peft.lora_alpha.unwrap_or(usual.lora_alpha),
            rank_pattern: Pattern::all(peft.rank_pattern.unwrap_or_default(), origin, fix)?,
            alpha_pattern: Pattern::all(peft.alpha_pattern.unwrap_or_default(), origin, fix)?,
            use_rslora: peft.use_rslora == Some(true),
            lora_dropout: peft.lora_dropout.unwrap_or_default(),
            target_modules: TargetModules::AllLinear,
            fan_in_fan_out: peft.fan_in_fan_out == Some(true),
        };
        spec.check(origin, fix)?;
        let weights = Weights::parse([weights], weights.0)?;
        // The modules are read from the tensors' names, because the config may hold a pattern instead.
        let mut modules: Vec<String> = weights.names().filter_map(module_of).map(str::to_string).collect();
        modules.sort();
        check_tensors(&weights, &modules)?;
        spec.target_modules = TargetModules::Names(modules);
        Ok(Self { spec, base: peft.base_model_name_or_path, unknown, weights })
    }
}

/// Fails unless all tensors are pairs of A and B, or a judge's head: any other tensor would be ignored
/// without a message.
fn check_tensors(weights: &Weights, modules: &[String]) -> Result<()> {
    let known: HashSet<String> =
        modules.iter().flat_map(|module| ['A', 'B'].map(|matrix| tensor_name(module, matrix))).collect();
    if modules.is_empty() {
        let found = weights.names().min().map_or("no tensor".into(), |name| format!("{name}, and others"));
        let fix = "give a plain LoRA adapter in PEFT's format";
        return Err(Error::input(weights.origin(), "tensors named *.lora_A.weight", found, fix));
    }
    let Some(odd) = weights.names().filter(|name| !known.contains(*name) && *name != PEFT_SCORE).min() else {
        return Ok(());
    };
    let fix = match ["embed", "lm_head", "wte", "embed_out"].iter().any(|part| odd.contains(part)) {
        true if odd.contains(".base_layer.") => {
            "it is a weight of the base model, which PEFT saves when the layer has LoRA: save the adapter \
             with save_embedding_layers=False, or merge it with PEFT first"
        }
        true => {
            "the adapter changes the embedding or the head (tokens were added, or they were trained too): \
             merge it with PEFT first, and give the merged model"
        }
        false => "use an adapter with LoRA on linear layers only, or merge it with PEFT first",
    };
    Err(Error::input(weights.origin(), "only A and B matrices of LoRA", odd, fix))
}

impl Adapter<'_> {
    /// Fails if the adapter has a tensor that is not in `layout`, which was loaded from it: the tensor would
    /// have no effect.
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
    /// adapter_config.json as PEFT writes it. `base` names the base model, and `modules` are the names for
    /// `target_modules`. With `judge` the configuration says that a classifier's head is saved with the
    /// adapter.
    pub fn to_peft_json(&self, base: &str, modules: &[String], judge: bool) -> String {
        let config = PeftConfig {
            peft_type: Some("LORA".into()),
            task_type: Some(if judge { "SEQ_CLS" } else { "CAUSAL_LM" }.into()),
            base_model_name_or_path: Some(base.into()),
            r: Some(self.r),
            lora_alpha: Some(self.lora_alpha),
            lora_dropout: Some(self.lora_dropout),
            target_modules: Some(modules.into()),
            bias: Some("none".into()),
            fan_in_fan_out: Some(self.fan_in_fan_out),
            use_rslora: Some(self.use_rslora),
            use_dora: Some(false),
            inference_mode: Some(true),
            modules_to_save: judge.then(|| HEADS.map(String::from).into()),
            rank_pattern: written(&self.rank_pattern),
            alpha_pattern: written(&self.alpha_pattern),
            lora_bias: Some(false),
            init_lora_weights: None,
            others: Map::new(),
        };
        serde_json::to_string_pretty(&config).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(names: &[&str]) -> Vec<u8> {
        let data = [0u8; 8];
        let view =
            || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 1], &data).unwrap();
        safetensors::serialize(names.iter().map(|name| (*name, view())), None).unwrap()
    }

    /// The settings and the unknown keys of an adapter with these keys in addition to the usual ones.
    fn parsed(extra: &str) -> crate::Result<(LoraSpec, Vec<String>)> {
        let json =
            format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"]{extra}}}"#);
        let module = "model.layers.0.self_attn.q_proj";
        let weights = file(&[&tensor_name(module, 'A'), &tensor_name(module, 'B')]);
        let adapter = Adapter::parse(("config", json.as_bytes()), ("weights", &weights))?;
        Ok((adapter.spec, adapter.unknown))
    }

    fn refusal(extra: &str) -> Option<String> {
        parsed(extra).err().map(|e| e.to_string())
    }

    #[test]
    fn what_would_change_the_mathematics_is_refused() {
        for (key, value) in [
            ("bias", r#""all""#),
            ("use_dora", "true"),
            ("modules_to_save", r#"["lm_head"]"#),
            ("alora_invocation_tokens", "[403, 407]"),
            ("use_qalora", "true"),
            ("trainable_token_indices", "[1]"),
            ("target_parameters", r#"["a"]"#),
            ("arrow_config", r#"{"top_k": 3}"#),
            ("use_supernova", "true"),
            ("init_lora_weights", r#""lora_ga""#),
            ("lora_bias", "true"),
            ("init_lora_weights", r#""pissa_niter_4""#),
            ("layer_replication", "[[0,2]]"),
        ] {
            let message = refusal(&format!(r#","{key}":{value}"#)).unwrap_or_default();
            assert!(message.contains(&format!("unsupported \"{key}\"")), "{key}: {message}");
        }
    }

    #[test]
    fn tensors_that_would_be_left_out_are_refused() {
        let json = br#"{"peft_type":"LORA","r":2,"lora_alpha":4,"bias":null,"rank_pattern":null,
            "lora_dropout":null}"#;
        let parse = |names: &[&str]| {
            let weights = file(names);
            Adapter::parse(("config", json), ("weights", &weights))
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let [a, b] = ['A', 'B'].map(|matrix| tensor_name("model.layers.0.mlp.up_proj", matrix));
        assert_eq!(parse(&[&a, &b]), Ok(()));
        // Tensor names that contain the adapter's name, and names from compiled models.
        let named = [&a, &b].map(|name| {
            name.replace(".weight", ".default.weight").replace("model.layers", "_orig_mod.model.layers")
        });
        assert_eq!(parse(&[&named[0], &named[1]]), Ok(()));
        for odd in [
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.embed_tokens.weight",
            "base_model.model.lm_head.base_layer.weight",
        ] {
            let message = parse(&[&a, &b, odd]).unwrap_err();
            assert!(message.contains(odd) && message.contains("merge it with PEFT first"), "{message}");
        }
        let lone = tensor_name("model.layers.1.mlp.up_proj", 'B');
        assert!(parse(&[&a, &b, &lone]).unwrap_err().contains(&lone));
        assert!(parse(&["model.layers.0.lora_a"]).unwrap_err().contains("found model.layers.0.lora_a"));
        let mlx = Adapter::parse(
            ("config", br#"{"fine_tune_type":"lora","lora_parameters":{}}"#),
            ("weights", &[]),
        );
        assert!(mlx.err().unwrap().to_string().contains("found one in MLX's format"));
    }

    #[test]
    fn leaf_names_hit_no_other_layer() {
        let names = |all: &[&str]| all.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let all = names(&["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc", "lm_head"]);
        assert_eq!(leaves(&names(&["h.0.attn.c_proj"]), &all), ["h.0.attn.c_proj"]);
        assert_eq!(
            leaves(&names(&["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc"]), &all),
            ["c_fc", "c_proj"]
        );
        assert_eq!(leaves(&names(&["lm_head"]), &all), ["lm_head"]);
    }

    #[test]
    fn what_peft_writes_by_default_is_taken() {
        let defaults = r#","bias":"none","rank_pattern":{},"alpha_pattern":{},"lora_bias":false,
            "init_lora_weights":true,"layer_replication":null,"modules_to_save":null"#;
        assert_eq!(refusal(defaults), None);
        assert_eq!(refusal(r#","init_lora_weights":"gaussian""#), None);

        let all = r#","alora_invocation_tokens":null,"qalora_group_size":16,"use_qalora":false,
            "megatron_core":"megatron.core","peft_version":"0.21.2","loftq_config":{},
            "runtime_config":{"ephemeral_gpu_offload":false},"rank_pattern":null"#;
        assert_eq!(parsed(all).unwrap().1, [""; 0]);
        // Unknown keys that may do nothing are reported.
        let unknown = r#","supernova_size":16,"supernova":"off","use_supernova":false"#;
        assert_eq!(parsed(unknown).unwrap().1, ["supernova", "supernova_size"]);
    }

    #[test]
    fn patterns_match_as_peft_matches_them() {
        let patterns = r#","rank_pattern":{"layers.1.self_attn.q_proj":4,"q_proj":8,
            "layers\\.[02]\\.mlp\\..*":16},
            "alpha_pattern":{"v_proj":12,"self_attn.v_proj":1},"use_rslora":true"#;
        let spec = parsed(patterns).unwrap().0;
        let of = |module: &str| (spec.rank(module), spec.scale(module));
        assert_eq!(of("model.layers.1.self_attn.q_proj"), (4, 4.0 / 2.0));
        assert_eq!(of("model.layers.0.self_attn.q_proj"), (8, 4.0 / 8f64.sqrt()));
        assert_eq!(of("model.layers.2.mlp.up_proj"), (16, 1.0));
        assert_eq!(of("model.layers.1.mlp.up_proj"), (2, 4.0 / 2f64.sqrt()));
        // The first that matches counts, and a name must match from its beginning or a dot.
        assert_eq!(of("model.layers.1.self_attn.v_proj"), (2, 12.0 / 2f64.sqrt()));
        assert_eq!(of("model.layers.0.self_attn.xq_proj"), (2, 4.0 / 2f64.sqrt()));
        let written = spec.to_peft_json("base", &["q_proj".into()], false);
        let read: PeftConfig = serde_json::from_str(&written).unwrap();
        let again = Pattern::all(read.rank_pattern.unwrap(), "config", "").unwrap();
        assert_eq!(again, spec.rank_pattern);
        assert_eq!(Pattern::all(read.alpha_pattern.unwrap(), "config", "").unwrap(), spec.alpha_pattern);
        assert_eq!(read.use_rslora, Some(true));
        assert!(refusal(r#","rank_pattern":{"(":4}"#).unwrap().contains("regular expressions"));
        assert!(refusal(r#","rank_pattern":{"q":0}"#).unwrap().contains("r >= 1"));
    }
}
