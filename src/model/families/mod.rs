//! The supported architectures and the names of their tensors.

mod gemma;
mod gpt;
mod json;
mod llama;

use serde_json::Value;

use super::config::{DecoderConfig, JUDGE_CLASSES, Names};
use crate::{Error, Result};
use json::Json;

/// A mapping from config.json and the architecture's name to a decoder's configuration.
type Map = fn(&Json, &'static str) -> Result<DecoderConfig>;

/// An architecture that maps onto the decoder.
struct Family {
    /// As in `architectures` of config.json.
    architecture: &'static str,
    /// As in its `model_type`.
    model_type: &'static str,
    map: Map,
}

/// Hugging Face's ending for the architecture of a decoder with a classifier's head.
const CLASSIFIER: &str = "ForSequenceClassification";

impl Family {
    /// The architecture's name without the ending that names its head.
    fn stem(&self) -> &'static str {
        let ends = ["ForCausalLM", "LMHeadModel"];
        ends.iter().find_map(|end| self.architecture.strip_suffix(end)).unwrap_or(self.architecture)
    }
}

const FAMILIES: [Family; 10] = [
    Family { architecture: "LlamaForCausalLM", model_type: "llama", map: llama::llama },
    Family { architecture: "MistralForCausalLM", model_type: "mistral", map: llama::mistral },
    Family { architecture: "Qwen2ForCausalLM", model_type: "qwen2", map: llama::qwen2 },
    Family { architecture: "Qwen3ForCausalLM", model_type: "qwen3", map: llama::qwen3 },
    Family { architecture: "SmolLM3ForCausalLM", model_type: "smollm3", map: llama::smollm3 },
    Family { architecture: "Phi3ForCausalLM", model_type: "phi3", map: llama::phi3 },
    Family { architecture: "Gemma2ForCausalLM", model_type: "gemma2", map: gemma::gemma2 },
    Family { architecture: "Gemma3ForCausalLM", model_type: "gemma3_text", map: gemma::gemma3 },
    Family { architecture: "GPT2LMHeadModel", model_type: "gpt2", map: gpt::gpt2 },
    Family { architecture: "GPTNeoXForCausalLM", model_type: "gpt_neox", map: gpt::gpt_neox },
];

impl DecoderConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// When it is not a config.json, names an unsupported architecture, or needs a feature that the
    /// decoder lacks.
    pub fn parse(json: &[u8], origin: &str) -> Result<Self> {
        let fix = "give the config.json that belongs to the model";
        let wrong = |found: String| Error::input(origin, "a Hugging Face model configuration", found, fix);
        let value: Value = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        let Value::Object(object) = &value else { return Err(wrong("no JSON object".into())) };
        let config = Json { object, origin };
        let architecture = object.get("architectures").and_then(|all| all.get(0)).and_then(Value::as_str);
        let model_type = object.get("model_type").and_then(Value::as_str);
        // A judge whose weights were all trained: `LlamaForSequenceClassification`.
        let classifier = architecture.and_then(|name| name.strip_suffix(CLASSIFIER));
        let known = match (architecture, classifier) {
            (_, Some(name)) => FAMILIES.iter().find(|family| family.stem() == name),
            (Some(name), None) => FAMILIES.iter().find(|family| family.architecture == name),
            (None, None) => FAMILIES.iter().find(|family| Some(family.model_type) == model_type),
        };
        let Some(family) = known else {
            let supported: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
            let expected = format!("a supported architecture ({})", supported.join(", "));
            let found = architecture.or(model_type).map_or("none named".into(), |name| format!("\"{name}\""));
            return Err(Error::input(origin, expected, found, "use a model of a supported architecture"));
        };
        let config = (family.map)(&config, family.architecture)?;
        let config = DecoderConfig { classes: classifier.map(|_| JUDGE_CLASSES), ..config };
        config.check(origin)?;
        Ok(config)
    }

    /// Hugging Face's name of this architecture with a classifier's head.
    pub fn classifier_architecture(&self) -> String {
        let family = FAMILIES.iter().find(|family| family.architecture == self.architecture);
        format!("{}{CLASSIFIER}", family.map_or(self.architecture, Family::stem))
    }

    /// Hugging Face's names of all the model's tensors, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (names, width) = (self.names, self.width);
        let mut all = vec![(names.embedding.to_string(), vec![self.vocab, width])];
        if let Some(positions) = names.positions {
            all.push((positions.into(), vec![self.max_positions, width]));
        }
        let norm = |all: &mut Vec<_>, module: &str| {
            all.push((format!("{module}.weight"), vec![width]));
            if self.norm == super::config::NormKind::Layer {
                all.push((format!("{module}.bias"), vec![width]));
            }
        };
        norm(&mut all, names.final_norm);
        if !self.tied {
            all.push((format!("{}.weight", names.head), vec![self.vocab, width]));
        }
        for index in 0..self.layers() {
            for module in self.norms() {
                norm(&mut all, &names.of(index, module));
            }
            if self.head_norms {
                for module in [names.q_norm, names.k_norm] {
                    all.push((format!("{}.weight", names.of(index, module)), vec![self.head_dim]));
                }
            }
            for Projection { module, outputs, inputs, bias } in self.projections() {
                let module = names.of(index, module);
                let shape = if names.transposed { vec![inputs, outputs] } else { vec![outputs, inputs] };
                all.push((format!("{module}.weight"), shape));
                if bias {
                    all.push((format!("{module}.bias"), vec![outputs]));
                }
            }
        }
        all
    }

    /// Full names of all linear layers, including the head.
    pub(super) fn linear_layers(&self) -> Vec<String> {
        let names = self.names;
        let of_block = |index| self.projections().into_iter().map(move |layer| names.of(index, layer.module));
        (0..self.layers()).flat_map(of_block).chain([names.head.to_string()]).collect()
    }

    /// The norms of a block over its width.
    fn norms(&self) -> impl Iterator<Item = &'static str> {
        let Names { attention_norm, after_attention, mlp_norm, after_mlp, .. } = *self.names;
        [Some(attention_norm), after_attention, Some(mlp_norm), after_mlp].into_iter().flatten()
    }

    /// The linear layers of a block.
    pub(super) fn projections(&self) -> Vec<Projection> {
        let (width, inner, names) = (self.width, self.inner, self.names);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let of = |module, outputs, inputs, bias| Projection { module, outputs, inputs, bias };
        let qkv = match *names.qkv {
            [all] => vec![of(all, q + 2 * kv, width, self.qkv_bias)],
            _ => names.qkv.iter().zip([q, kv, kv]).map(|(m, n)| of(m, n, width, self.qkv_bias)).collect(),
        };
        let up = self.up() / names.up.len();
        let up = names.up.iter().map(|module| of(module, up, width, self.mlp_bias));
        let o = of(names.o, width, q, self.o_bias);
        let down = of(names.down, width, inner, self.mlp_bias);
        qkv.into_iter().chain([o]).chain(up).chain([down]).collect()
    }
}

/// A linear layer of a block.
pub(super) struct Projection {
    /// The layer's name within the block.
    pub module: &'static str,
    pub outputs: usize,
    pub inputs: usize,
    pub bias: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_caps_of_nothing_are_refused() {
        let config = |extra: &str| {
            let json = format!(
                r#"{{"model_type": "gemma2", "vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
                    "intermediate_size": 8{extra}}}"#
            );
            DecoderConfig::parse(json.as_bytes(), "config.json")
        };
        assert!(config("").is_ok());
        for (extra, expected) in [
            (r#", "sliding_window": 0"#, "sliding_window from 1"),
            (r#", "attn_logit_softcapping": 0"#, "soft caps over 0"),
            (r#", "final_logit_softcapping": -3"#, "soft caps over 0"),
        ] {
            let message = config(extra).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let huge = r#"{"model_type": "gpt2", "vocab_size": 8, "n_embd": 18446744073709551615, "n_head": 1,
                "n_layer": 1}"#;
        assert!(DecoderConfig::parse(huge.as_bytes(), "config.json").is_err());
    }

    #[test]
    fn an_unknown_architecture_is_named_with_those_that_are_known() {
        let message =
            |json: &str| DecoderConfig::parse(json.as_bytes(), "config.json").unwrap_err().to_string();
        let found = message(r#"{"architectures": ["MambaForCausalLM"]}"#);
        assert!(found.contains("found \"MambaForCausalLM\""), "{found}");
        assert!(FAMILIES.iter().all(|family| found.contains(family.architecture)), "{found}");
        assert!(message("{}").contains("none named"));
        assert!(message("[]").contains("no JSON object"));
        assert!(message(r#"{"model_type": "llama"}"#).contains("\"hidden_size\""));
    }
}
