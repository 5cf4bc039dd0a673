//! Llama and the families that differ from it in a setting or two.

use super::json::Json;
use crate::Result;
use crate::model::config::{BlockConfig, DecoderConfig, Names, NormKind};

static LLAMA: Names = Names::LLAMA;
static PHI3: Names = Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..Names::LLAMA };

/// Values of keys that config.json lacks: the defaults of the family's class in transformers.
#[derive(Clone, Copy)]
pub struct Usual {
    pub head_dim: Option<usize>,
    pub kv_heads: Option<usize>,
    pub theta: f64,
    pub eps: f64,
    pub positions: usize,
    pub tied: bool,
    /// Whether all layers share one set of rope settings; otherwise the family reads its own sets.
    pub one_rope: bool,
}

impl Usual {
    pub const LLAMA: Self = Self {
        head_dim: None,
        kv_heads: None,
        theta: 10_000.0,
        eps: 1e-6,
        positions: 2048,
        tied: false,
        one_rope: true,
    };
    const MISTRAL: Self = Self { kv_heads: Some(8), positions: 131_072, ..Self::LLAMA };
    const QWEN2: Self = Self { kv_heads: Some(32), positions: 32_768, ..Self::LLAMA };
    const QWEN3: Self = Self { head_dim: Some(128), ..Self::QWEN2 };
    const SMOLLM3: Self =
        Self { kv_heads: Some(4), theta: 2e6, positions: 32_768, tied: true, ..Self::LLAMA };
    const PHI3: Self = Self { eps: 1e-5, positions: 4096, ..Self::LLAMA };
}

/// Llama 2 and 3, SmolLM, SmolLM2.
pub fn llama(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    with(json, architecture, Usual::LLAMA)
}

/// A decoder with Llama's names and parts, and a family's own defaults.
pub fn with(json: &Json, architecture: &'static str, usual: Usual) -> Result<DecoderConfig> {
    let width = json.need_size("hidden_size")?;
    let heads = json.need_size("num_attention_heads")?;
    let head_dim = json.size("head_dim")?.or(usual.head_dim).unwrap_or(width / heads.max(1));
    // null means one for each query head.
    let kv_heads = match json.object.contains_key("num_key_value_heads") {
        true => json.size("num_key_value_heads")?,
        false => usual.kv_heads,
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    let attention_bias = json.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        architecture,
        names: &LLAMA,
        vocab: json.need_size("vocab_size")?,
        classes: None,
        width,
        blocks: json.blocks(json.need_size("num_hidden_layers")?, None, |_| false)?,
        heads,
        kv_heads,
        head_dim,
        inner: json.need_size("intermediate_size")?,
        norm: NormKind::Rms { shift: 0.0 },
        eps: json.number("rms_norm_eps")?.unwrap_or(usual.eps) as f32,
        ropes: if usual.one_rope { vec![json.rope(head_dim, usual.theta)?] } else { Vec::new() },
        max_positions: json.size("max_position_embeddings")?.unwrap_or(usual.positions),
        learned_positions: false,
        tied: json.flag("tie_word_embeddings", usual.tied)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: json.flag("mlp_bias", false)?,
        head_norms: false,
        output_norms: false,
        parallel: false,
        interleaved: false,
        activation: json.activation(&["hidden_act"], "silu")?,
        gated: true,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        embedding_scale: 1.0,
    })
}

/// The sliding window: 4096 if the key is missing, and none if it is null.
fn window(json: &Json) -> Result<Option<usize>> {
    match json.object.contains_key("sliding_window") {
        true => json.size("sliding_window"),
        false => Ok(Some(4096)),
    }
}

/// Mistral: a sliding window in all layers, 4096 if the key is missing; null means none.
pub fn mistral(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let window = window(json)?;
    let config = with(json, architecture, Usual::MISTRAL)?;
    Ok(DecoderConfig { blocks: json.blocks(config.layers(), window, |_| true)?, ..config })
}

/// The blocks: those from `max_window_layers` on have the window, if `use_sliding_window` is set.
fn qwen_blocks(json: &Json, count: usize) -> Result<Vec<BlockConfig>> {
    let window = window(json)?;
    let window = if json.flag("use_sliding_window", false)? { window } else { None };
    let full = json.size("max_window_layers")?.unwrap_or(28);
    json.blocks(count, window, |index| index >= full)
}

/// Qwen 2 and 2.5: biases on q, k and v.
pub fn qwen2(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let config = with(json, architecture, Usual::QWEN2)?;
    let blocks = qwen_blocks(json, config.layers())?;
    Ok(DecoderConfig { blocks, qkv_bias: true, o_bias: false, ..config })
}

/// Qwen 3: norms of queries and keys.
pub fn qwen3(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let config = with(json, architecture, Usual::QWEN3)?;
    Ok(DecoderConfig { blocks: qwen_blocks(json, config.layers())?, head_norms: true, ..config })
}

/// SmolLM 3: no rotary positions in some layers.
pub fn smollm3(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let mut config = with(json, architecture, Usual::SMOLLM3)?;
    config.blocks = qwen_blocks(json, config.layers())?;
    let interval = json.size("no_rope_layer_interval")?.unwrap_or(4).max(1);
    // In spite of its name, the list marks the layers that do have rotary positions.
    let turning = json.list("no_rope_layers")?;
    for (index, block) in config.blocks.iter_mut().enumerate() {
        let turns = match turning {
            Some(list) => list.get(index).and_then(serde_json::Value::as_u64) != Some(0),
            None => !(index + 1).is_multiple_of(interval),
        };
        block.rope = turns.then_some(0);
    }
    Ok(config)
}

/// Phi-3: fused projections, heads that may be rotated only in part.
pub fn phi3(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let window = json.size("sliding_window")?;
    let config = with(json, architecture, Usual::PHI3)?;
    let blocks = json.blocks(config.layers(), window, |_| true)?;
    Ok(DecoderConfig { names: &PHI3, blocks, ..config })
}
