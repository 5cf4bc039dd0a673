//! Which architectures are supported, and how their tensors are named.

use super::config::{DecoderConfig, HfConfig};
use crate::{Error, Result};

/// Architectures that map onto the decoder.
const SUPPORTED: &[&str] = &["LlamaForCausalLM"];

impl DecoderConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// When it is not one, names an unsupported architecture, or asks for something the decoder lacks.
    pub fn parse(json: &[u8], origin: &str) -> Result<Self> {
        let config = match HfConfig::parse(json, origin) {
            Ok(config) => config,
            // An unknown architecture may lack the keys of a known one: name the architecture, not the key.
            Err(error) => return Err(unsupported(json, origin).unwrap_or(error)),
        };
        let architecture = config.architectures.as_ref().and_then(|a| a.first().cloned());
        let known = architecture
            .as_deref()
            .map_or(config.model_type.as_deref() == Some("llama"), |a| SUPPORTED.contains(&a));
        if !known {
            let found = architecture.or(config.model_type).unwrap_or_else(|| "none named".into());
            return Err(unknown(origin, &found));
        }
        config.llama(origin)
    }

    /// Hugging Face's names of all the model's tensors, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (width, inner) = (self.width, self.inner);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = [("q", q, width), ("k", kv, width), ("v", kv, width), ("o", width, q)].map(
            |(name, outputs, inputs)| {
                (format!("self_attn.{name}_proj"), outputs, inputs, self.attention_bias)
            },
        );
        let mlp = [("gate", inner, width), ("up", inner, width), ("down", width, inner)]
            .map(|(name, outputs, inputs)| (format!("mlp.{name}_proj"), outputs, inputs, self.mlp_bias));
        let mut all =
            vec![(EMBEDDING.to_string(), vec![self.vocab, width]), (FINAL_NORM.into(), vec![width])];
        if !self.tied {
            all.push((format!("{HEAD}.weight"), vec![self.vocab, width]));
        }
        for index in 0..self.layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                all.push((layer(index, &format!("{norm}.weight")), vec![width]));
            }
            for (module, outputs, inputs, bias) in attention.iter().chain(&mlp) {
                all.push((layer(index, &format!("{module}.weight")), vec![*outputs, *inputs]));
                if *bias {
                    all.push((layer(index, &format!("{module}.bias")), vec![*outputs]));
                }
            }
        }
        all
    }
}

fn unsupported(json: &[u8], origin: &str) -> Option<Error> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let name = value.get("architectures")?.get(0)?.as_str()?;
    (!SUPPORTED.contains(&name)).then(|| unknown(origin, name))
}

fn unknown(origin: &str, found: &str) -> Error {
    let expected = format!("a supported architecture ({})", SUPPORTED.join(", "));
    Error::input(origin, expected, format!("\"{found}\""), "use a model of a supported architecture")
}

/// Hugging Face's name of a block's part.
pub(super) fn layer(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}")
}
/// The embedding's name.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The last norm's name.
pub(super) const FINAL_NORM: &str = "model.norm.weight";
/// The output head's module.
pub(super) const HEAD: &str = "lm_head";
