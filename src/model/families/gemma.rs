//! Gemma 2 (2408.00118) and the text models of Gemma 3 (2503.19786).

use super::json::Json;
use super::llama;
use crate::model::config::{DecoderConfig, Names, NormKind, Rope};
use crate::{Error, Result};

static GEMMA: Names = Names {
    after_attention: Some("post_attention_layernorm"),
    mlp_norm: "pre_feedforward_layernorm",
    after_mlp: Some("post_feedforward_layernorm"),
    ..Names::LLAMA
};

/// The parts that both share: norms with the weights 1 + w, also on the outputs of attention and MLP; a
/// scaled embedding, which is also the head; GELU by the tanh approximation.
fn gemma(json: &Json, architecture: &'static str, positions: usize) -> Result<DecoderConfig> {
    let usual = llama::Usual {
        head_dim: Some(256),
        kv_heads: Some(4),
        positions,
        tied: true,
        one_rope: false,
        ..llama::Usual::LLAMA
    };
    let config = llama::with(json, architecture, usual)?;
    if json.flag("use_bidirectional_attention", false)? {
        let fix = "use a causal language model";
        return Err(Error::input(json.origin, "use_bidirectional_attention false", true, fix));
    }
    let scale = json.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    let activation = json.activation(&["hidden_activation", "hidden_act"], "gelu_pytorch_tanh")?;
    Ok(DecoderConfig {
        names: &GEMMA,
        norm: NormKind::Rms { shift: 1.0 },
        output_norms: true,
        activation,
        attention_scale: scale.powf(-0.5) as f32,
        embedding_scale: (config.width as f32).sqrt(),
        ..config
    })
}

/// A soft cap, which null switches off; without the key it is `default`.
fn cap(json: &Json, key: &str, default: f64) -> Result<Option<f32>> {
    if json.object.contains_key(key) {
        Ok(json.number(key)?.map(|cap| cap as f32))
    } else {
        Ok(Some(default as f32))
    }
}

/// Gemma 2: every other layer is local, beginning with the first; scores and logits are capped.
pub fn gemma2(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let config = gemma(json, architecture, 8192)?;
    let window = Some(json.size("sliding_window")?.unwrap_or(4096));
    Ok(DecoderConfig {
        blocks: json.blocks(config.layers(), window, |index| index.is_multiple_of(2))?,
        ropes: vec![json.rope(config.head_dim, 10_000.0)?],
        attention_cap: cap(json, "attn_logit_softcapping", 50.0)?,
        logit_cap: cap(json, "final_logit_softcapping", 30.0)?,
        ..config
    })
}

/// Gemma 3: every sixth layer is global; local layers have a smaller rotary base; queries and keys are
/// normed.
pub fn gemma3(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let config = gemma(json, architecture, 131_072)?;
    let window = Some(json.size("sliding_window")?.unwrap_or(4096));
    let pattern = json.size("sliding_window_pattern")?.unwrap_or(6).max(1);
    let mut blocks = json.blocks(config.layers(), window, |index| !(index + 1).is_multiple_of(pattern))?;
    blocks.iter_mut().for_each(|block| block.rope = Some(usize::from(block.window.is_some())));
    let (dim, theta, local) = (config.head_dim, 1e6, json.number("rope_local_base_freq")?.unwrap_or(1e4));
    // transformers 5 stores separate settings for each kind of layer.
    let both = json.object("rope_parameters")?;
    let both =
        both.map(|both| Ok::<_, Error>((both.object("full_attention")?, both.object("sliding_attention")?)));
    let ropes = match both.transpose()? {
        Some((Some(full), Some(sliding))) => {
            vec![full.own_rope(dim, theta, 1.0)?, sliding.own_rope(dim, local, 1.0)?]
        }
        _ => {
            let global = json.rope(dim, theta)?;
            vec![global, Rope { theta: local, scaling: None, dim }]
        }
    };
    Ok(DecoderConfig {
        blocks,
        ropes,
        head_norms: true,
        // config.json may have the key of a cap on scores as well, but transformers does not read it in this
        // family.
        logit_cap: json.number("final_logit_softcapping")?.map(|cap| cap as f32),
        ..config
    })
}
