//! Describes a Hugging Face model as a GGUF file, as llama.cpp's converter does.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::hf::{ARCHITECTURES, PARTS};
use super::tokenizer::{BYTE, CONTROL, LLAMA3, NORMAL, QWEN2, UNKNOWN, UNUSED, USER};
use super::write::Described;
use super::{Kind, Value};
use crate::data::TokenizerFacts;
use crate::model::adapter::tensor_name;
use crate::model::{Adapter, DecoderConfig, ModelBytes, RopeScaling};
use crate::{Error, Result};

/// Everything in a file except its tensors' elements.
pub struct Description {
    /// In the file's order.
    pub metadata: Vec<(String, Value)>,
    /// In the file's order.
    pub tensors: Vec<Described>,
    /// The source of each tensor's elements.
    pub sources: Vec<Source>,
}

/// The source of a tensor's elements.
pub enum Source {
    /// The model's tensor of this name. The number of heads is given for queries and keys whose rows
    /// llama.cpp wants in another order, for rotation by neighbours.
    Tensor(String, Option<usize>),
    /// These values.
    Values(Vec<f32>),
}

/// Describes `model` with its matrices of `kind`.
///
/// # Errors
/// An architecture or tokenizer that cannot be written as GGUF, or damaged files.
pub fn describe(model: &ModelBytes, kind: Kind) -> Result<Description> {
    let config = model.weights()?.untied(model.decoder_config()?);
    let (arch, reordered) = architecture(model, &config)?;
    let llama3 = |rope: &crate::model::Rope| matches!(rope.scaling, None | Some(RopeScaling::Llama3 { .. }));
    let scaled = config.ropes.iter().any(|rope| rope.scaling.is_some());
    let windowed = config.blocks.iter().any(|block| block.window.is_some());
    if !config.ropes.iter().all(llama3) || (arch != "llama" && (scaled || windowed)) {
        let expected =
            "rotary positions that GGUF export supports: only Llama may have windows or Llama 3's scaling";
        let fix = "export a directory, and use llama.cpp's converter on it";
        let found = format!("{:?}{}", config.ropes, if windowed { ", with windows" } else { "" });
        return Err(Error::input(model.config_place(), expected, found, fix));
    }
    let mut metadata = vec![
        ("general.architecture".to_string(), Value::String(arch.into())),
        ("general.type".into(), Value::String("model".into())),
        ("general.name".into(), Value::String(model.name.into())),
        ("general.file_type".into(), Value::U32(file_type(kind))),
        ("general.quantization_version".into(), Value::U32(2)),
    ];
    metadata.extend(sizes(&config).into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)));
    metadata.extend(tokenizer(model, config.vocab)?);
    let (mut tensors, mut sources) = (Vec::new(), Vec::new());
    if let Some(divisors) = frequency_divisors(&config) {
        let name = "rope_freqs.weight".to_string();
        tensors.push(Described { name, kind: Kind::F32, shape: vec![divisors.len()] });
        sources.push(Source::Values(divisors));
    }
    for (name, shape) in config.tensors() {
        let heads = heads(&config, &name);
        let whole = shape.last().is_some_and(|row| row.is_multiple_of(kind.block_elements()));
        let kind = match shape.len() {
            1 => Kind::F32,
            // As ggml does with rows that are not a multiple of the block.
            _ if !whole => Kind::F16,
            _ => kind,
        };
        tensors.push(Described { name: gguf_name(&name), kind, shape });
        sources.push(Source::Tensor(name, heads.filter(|_| reordered)));
    }
    Ok(Description { metadata, tensors, sources })
}

/// llama.cpp's name of the model's architecture, and whether it wants the rows of queries and keys in another
/// order.
fn architecture(model: &ModelBytes, config: &DecoderConfig) -> Result<(&'static str, bool)> {
    let family = match config.architecture {
        // To llama.cpp both are one architecture.
        "MistralForCausalLM" => "LlamaForCausalLM",
        other => other,
    };
    let known = ARCHITECTURES.iter().find(|(_, architecture, ..)| *architecture == family);
    known.map(|&(arch, _, _, reordered)| (arch, reordered)).ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|(_, architecture, ..)| *architecture).collect();
        let expected =
            format!("an architecture that GGUF export supports ({}, MistralForCausalLM)", names.join(", "));
        let fix = "export a directory, and use llama.cpp's converter on it";
        Error::input(model.config_place(), expected, config.architecture, fix)
    })
}

/// Describes `adapter` of `model` as a GGUF adapter, which llama.cpp applies to the model's own GGUF file
/// (`--lora`), with matrices of `kind`. llama.cpp's factor is `adapter.lora.alpha` divided by a layer's rank;
/// what a layer's own factor differs by is in its B.
///
/// # Errors
/// As [`describe`]; an adapter that lacks a matrix.
pub fn describe_adapter(model: &ModelBytes, adapter: &Adapter, kind: Kind) -> Result<Description> {
    let config = model.weights()?.untied(model.decoder_config()?);
    let (arch, reordered) = architecture(model, &config)?;
    let spec = &adapter.spec;
    // llama.cpp takes an alpha of 0 for none.
    let alpha = if spec.lora_alpha == 0.0 { 1.0 } else { spec.lora_alpha };
    let text = |value: &str| Value::String(value.into());
    let metadata = vec![
        ("general.architecture".to_string(), text(arch)),
        ("general.type".into(), text("adapter")),
        ("general.name".into(), text(adapter.weights.origin())),
        ("general.file_type".into(), Value::U32(file_type(kind))),
        ("adapter.type".into(), text("lora")),
        ("adapter.lora.alpha".into(), Value::F32(alpha as f32)),
    ];
    let (mut tensors, mut sources) = (Vec::new(), Vec::new());
    for (name, shape) in config.tensors() {
        let Some(module) = name.strip_suffix(".weight").filter(|_| shape.len() == 2) else { continue };
        if !config.linear_layers().iter().any(|layer| layer == module) || !spec.target_modules.selects(module)
        {
            continue;
        }
        let (outputs, inputs, rank) = (shape[0], shape[1], spec.rank(module));
        let a = adapter.weights.get(&tensor_name(module, 'A'), &[rank, inputs])?.to_f32();
        let mut b = adapter.weights.get(&tensor_name(module, 'B'), &[outputs, rank])?.to_f32();
        let factor = spec.scale(module) / (alpha / rank as f64);
        b.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        if let Some(heads) = heads(&config, &name).filter(|_| reordered) {
            b = as_neighbours(&b, outputs, heads);
        }
        for (values, letter, shape) in [(a, 'a', [rank, inputs]), (b, 'b', [outputs, rank])] {
            let name = format!("{}.lora_{letter}", gguf_name(&name));
            tensors.push(Described { name, kind, shape: shape.to_vec() });
            sources.push(Source::Values(values));
        }
    }
    Ok(Description { metadata, tensors, sources })
}

/// The number of heads of a tensor of queries or keys.
fn heads(config: &DecoderConfig, name: &str) -> Option<usize> {
    let of = |module: &str| ["weight", "bias"].iter().any(|end| name.ends_with(&format!("{module}.{end}")));
    if of("q_proj") {
        Some(config.heads)
    } else if of("k_proj") {
        Some(config.kv_heads)
    } else {
        None
    }
}

/// llama.cpp's number for a file whose matrices are of this kind.
fn file_type(kind: Kind) -> u32 {
    match kind {
        Kind::F16 => 1,
        Kind::Q8_0 => 7,
        Kind::Bf16 => 32,
        _ => 0,
    }
}

fn sizes(config: &DecoderConfig) -> Vec<(&'static str, Value)> {
    let number = |n: usize| Value::U32(n as u32);
    let mut all = vec![
        ("block_count", number(config.layers())),
        ("context_length", number(config.max_positions)),
        ("embedding_length", number(config.width)),
        ("feed_forward_length", number(config.inner)),
        ("attention.head_count", number(config.heads)),
        ("attention.head_count_kv", number(config.kv_heads)),
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.eps)),
        ("rope.dimension_count", number(config.head_dim)),
        ("vocab_size", number(config.vocab)),
    ];
    all.extend(config.ropes.first().map(|rope| ("rope.freq_base", Value::F32(rope.theta as f32))));
    let window = config.blocks.iter().find_map(|block| block.window);
    all.extend(window.map(|window| ("attention.sliding_window", number(window))));
    all
}

/// The divisor of each rotary frequency under Llama 3's scaling; `None` without scaling.
fn frequency_divisors(config: &DecoderConfig) -> Option<Vec<f32>> {
    let rope = *config.ropes.first().filter(|rope| rope.scaling.is_some())?;
    let plain = crate::model::Rope { scaling: None, ..rope };
    let both = plain.inverse_frequencies().into_iter().zip(rope.inverse_frequencies());
    Some(both.map(|(plain, scaled)| (plain / scaled) as f32).collect())
}

/// GGUF's name of a Hugging Face tensor of one of the supported architectures.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let of_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let (index, rest) = of_block.unwrap_or(("", name));
    let (module, ending) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let part = PARTS.iter().find(|(_, hf)| *hf == module).map_or(module, |(own, _)| own);
    format!("blk.{index}.{part}.{ending}")
}

/// `tokenizer.ggml.*` from tokenizer.json and the files beside it.
fn tokenizer(model: &ModelBytes, vocab: usize) -> Result<Vec<(String, Value)>> {
    let place = model.tokenizer.place("tokenizer.json");
    let wrong = |expected: &str, found: String| {
        Error::input(&place, expected, found, "export a directory, and use llama.cpp's converter on it")
    };
    let json: Json = serde_json::from_slice(&model.tokenizer.tokenizer)
        .map_err(|error| wrong("a tokenizer of the tokenizers library", error.to_string()))?;
    let own = &json["model"];
    if own["type"] != "BPE" {
        return Err(wrong("a BPE tokenizer", own["type"].to_string()));
    }
    let pieces = own["byte_fallback"] == true;
    let (kind, pre) = if pieces {
        ("llama", "default")
    } else {
        (
            "gpt2",
            pre_tokenizer(&json).ok_or_else(|| {
                let found = json["pre_tokenizer"].to_string().chars().take(100).collect();
                wrong("a pre-tokenizer of GPT-2, SmolLM, Llama 3 or Qwen 2", found)
            })?,
        )
    };
    let mut tokens: Vec<Option<(&str, u64)>> = vec![None; vocab];
    let unknown = own["unk_token"].as_str();
    for (token, id) in own["vocab"].as_object().into_iter().flatten() {
        let kind = match token.as_str() {
            token if Some(token) == unknown => UNKNOWN,
            token if pieces && is_byte(token) => BYTE,
            _ => NORMAL,
        };
        if let Some(slot) = id.as_u64().and_then(|id| tokens.get_mut(id as usize)) {
            *slot = Some((token, kind));
        }
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER };
        let slot = added["id"].as_u64().and_then(|id| tokens.get_mut(id as usize));
        if let (Some(slot), Some(token)) = (slot, added["content"].as_str()) {
            *slot = Some((token, if Some(token) == unknown { UNKNOWN } else { kind }));
        }
    }
    let merges: Vec<String> = own["merges"].as_array().into_iter().flatten().filter_map(merge).collect();
    let named: Vec<String> =
        (0..vocab).map(|id| tokens[id].map_or(format!("[PAD{id}]"), |(token, _)| token.into())).collect();
    let ids: HashMap<&str, usize> = named.iter().map(String::as_str).zip(0..).collect();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let texts = |all: &[String]| Value::Array(all.iter().cloned().map(Value::String).collect());
    let types =
        tokens.iter().map(|token| Value::I32(token.map_or(UNUSED, |(_, kind)| kind) as i32)).collect();
    let mut all = vec![
        (key("model"), Value::String(kind.into())),
        (key("pre"), Value::String(pre.into())),
        (key("tokens"), texts(&named)),
        (key("token_type"), Value::Array(types)),
    ];
    if pieces {
        // SentencePiece merges by the score of the resulting piece: the piece of the first merge has the best
        // score.
        let mut scores = vec![-(merges.len() as f32) - 1.0; vocab];
        for (rank, merge) in merges.iter().enumerate().rev() {
            if let Some(&id) = ids.get(merge.replacen(' ', "", 1).as_str()) {
                scores[id] = -(rank as f32);
            }
        }
        all.push((key("scores"), Value::Array(scores.into_iter().map(Value::F32).collect())));
        let before = format!("{}{}", json["normalizer"], json["pre_tokenizer"]);
        let marks = ["\"Prepend\"", "\"prepend_scheme\":\"first\"", "\"prepend_scheme\":\"always\""];
        let prepends = marks.iter().any(|mark| before.contains(mark));
        all.push((key("add_space_prefix"), Value::Bool(prepends)));
    } else {
        all.push((key("merges"), texts(&merges)));
    }
    let facts = TokenizerFacts::read(&model.tokenizer)?;
    for (name, own) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
        let token = facts.specials.get(&format!("{own}_token"));
        let id = token.and_then(|token| ids.get(token.as_str())).map(|&id| id as u32);
        // Some models give their end token only by its id. Without it llama.cpp would choose an end token
        // itself.
        let id = id.or(facts.eos_ids.first().copied().filter(|id| own == "eos" && (*id as usize) < vocab));
        all.extend(id.map(|id| (key(&format!("{name}_token_id")), Value::U32(id))));
    }
    let chat = model.tokenizer()?;
    let (plain, with) = (chat.encode_text("a", false)?, chat.encode_text("a", true)?);
    all.push((key("add_bos_token"), Value::Bool(with.first() != plain.first())));
    all.push((key("add_eos_token"), Value::Bool(with.last() != plain.last())));
    all.extend(facts.template.map(|(text, _)| ("tokenizer.chat_template".to_string(), Value::String(text))));
    Ok(all)
}

fn is_byte(token: &str) -> bool {
    let inside = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    inside.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// A merge as GGUF stores it; tokenizer.json has strings or, since 2024, pairs.
fn merge(merge: &Json) -> Option<String> {
    match merge.as_array() {
        None => merge.as_str().map(str::to_owned),
        Some(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
    }
}

/// llama.cpp's name of the pre-tokenizer; `None` for an unsupported one.
fn pre_tokenizer(json: &Json) -> Option<&'static str> {
    let own = &json["pre_tokenizer"];
    let all = match own["pretokenizers"].as_array() {
        Some(all) => all.iter().collect(),
        None => vec![own],
    };
    let kind = |step: &Json| step["type"].as_str().unwrap_or_default().to_string();
    let pattern = |step: &Json| step["pattern"]["Regex"].as_str().unwrap_or_default().to_string();
    match &all[..] {
        [bytes] if kind(bytes) == "ByteLevel" && bytes["use_regex"] != false => Some("gpt-2"),
        [digits, bytes] if kind(digits) == "Digits" && kind(bytes) == "ByteLevel" => Some("smollm"),
        [split, bytes] if kind(split) == "Split" && kind(bytes) == "ByteLevel" => {
            match pattern(split).as_str() {
                LLAMA3 => Some("llama-bpe"),
                QWEN2 => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Rows of queries or keys in llama.cpp's order: the reverse of [`super::in_halves`].
pub fn as_neighbours(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (size, dim) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / dim, row % dim);
        let source = head * dim + within % 2 * (dim / 2) + within / 2;
        out.extend(&values[source * size..(source + 1) * size]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::in_halves;

    #[test]
    fn neighbours_are_the_reverse_of_halves() {
        let values: Vec<f32> = (0..48).map(|i| i as f32).collect();
        let turned = as_neighbours(&values, 24, 3);
        assert_ne!(turned, values);
        let back = in_halves(bytemuck::cast_slice(&turned), 24, 3);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&back), values);
    }
}
