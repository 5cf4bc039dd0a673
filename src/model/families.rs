//! Which architectures are supported, and how their tensors are named.

use super::config::{DecoderConfig, HfConfig};
use crate::{Error, Result};

/// Architectures that map onto the decoder.
const SUPPORTED: &[&str] = &["LlamaForCausalLM"];

/// Reads config.json.
///
/// # Errors
/// When it is not one, names an unsupported architecture, or asks for something the decoder lacks.
pub(super) fn read_config(json: &[u8], origin: &str) -> Result<DecoderConfig> {
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
