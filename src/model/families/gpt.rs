//! GPT-2, and GPT-NeoX with the Pythia models.

use super::json::Json;
use crate::model::config::{BlockConfig, DecoderConfig, Names, NormKind};
use crate::{Error, Result};

static GPT2: Names = Names {
    embedding: "transformer.wte.weight",
    positions: Some("transformer.wpe.weight"),
    final_norm: "transformer.ln_f",
    head: "lm_head",
    blocks: "transformer.h",
    attention_norm: "ln_1",
    mlp_norm: "ln_2",
    qkv: &["attn.c_attn"],
    o: "attn.c_proj",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    transposed: true,
    ..Names::LLAMA
};

static GPT_NEOX: Names = Names {
    embedding: "gpt_neox.embed_in.weight",
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    blocks: "gpt_neox.layers",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    qkv: &["attention.query_key_value"],
    o: "attention.dense",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    ..Names::LLAMA
};

/// Fails if `key` has another value than `value`, GPT-2's.
fn only(json: &Json, key: &str, value: bool) -> Result<()> {
    if json.flag(key, value)? == value {
        return Ok(());
    }
    Err(Error::input(json.origin, format!("{key} {value}"), !value, "use a model without this setting"))
}

/// GPT-2: learned positions, LayerNorm, matrices stored as (inputs, outputs).
pub fn gpt2(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    only(json, "scale_attn_weights", true)?;
    only(json, "scale_attn_by_inverse_layer_idx", false)?;
    only(json, "add_cross_attention", false)?;
    let (width, heads) = (json.need_size("n_embd")?, json.need_size("n_head")?);
    let head_dim = width / heads.max(1);
    let blocks = json.blocks(json.need_size("n_layer")?, None, |_| false)?;
    Ok(DecoderConfig {
        architecture,
        names: &GPT2,
        vocab: json.need_size("vocab_size")?,
        classes: None,
        width,
        blocks: vec![BlockConfig::default(); blocks.len()],
        heads,
        kv_heads: heads,
        head_dim,
        inner: json.size("n_inner")?.unwrap_or(width.saturating_mul(4)),
        norm: NormKind::Layer,
        eps: json.number("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        ropes: Vec::new(),
        max_positions: json.size("n_positions")?.unwrap_or(1024),
        learned_positions: true,
        tied: json.flag("tie_word_embeddings", true)?,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        head_norms: false,
        output_norms: false,
        parallel: false,
        interleaved: false,
        activation: json.activation(&["activation_function"], "gelu_new")?,
        gated: false,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        embedding_scale: 1.0,
    })
}

/// GPT-NeoX and Pythia: attention and MLP in parallel, partly rotated heads, one projection with
/// interleaved heads.
pub fn gpt_neox(json: &Json, architecture: &'static str) -> Result<DecoderConfig> {
    let (width, heads) = (json.need_size("hidden_size")?, json.need_size("num_attention_heads")?);
    let head_dim = width / heads.max(1);
    let mut rope = json.rope(head_dim, json.number("rotary_emb_base")?.unwrap_or(10_000.0))?;
    // transformers 5 writes the rotated share into rope_parameters.
    if let Some(share) = json.number("rotary_pct")? {
        rope.dim = (head_dim as f64 * share) as usize;
    } else if rope.dim == head_dim && json.object("rope_parameters")?.is_none() {
        rope.dim = head_dim / 4;
    }
    let bias = json.flag("attention_bias", true)?;
    Ok(DecoderConfig {
        architecture,
        names: &GPT_NEOX,
        vocab: json.need_size("vocab_size")?,
        classes: None,
        width,
        blocks: json.blocks(json.need_size("num_hidden_layers")?, None, |_| false)?,
        heads,
        kv_heads: heads,
        head_dim,
        inner: json.need_size("intermediate_size")?,
        norm: NormKind::Layer,
        eps: json.number("layer_norm_eps")?.unwrap_or(1e-5) as f32,
        ropes: vec![rope],
        max_positions: json.size("max_position_embeddings")?.unwrap_or(2048),
        learned_positions: false,
        tied: json.flag("tie_word_embeddings", false)?,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: true,
        head_norms: false,
        output_norms: false,
        parallel: json.flag("use_parallel_residual", true)?,
        interleaved: true,
        activation: json.activation(&["hidden_act"], "gelu")?,
        gated: false,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        embedding_scale: 1.0,
    })
}
