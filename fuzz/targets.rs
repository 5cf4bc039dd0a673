//! Every parser of files from outside, and the first use of what it parsed. libFuzzer runs these targets in
//! `fuzz_targets/`, and `tests/hostile.rs` runs them on a bounded number of damaged files.

use aweigh::config::Layer;
use aweigh::data::{ChatTemplate, ChatTokenizer, Message, TokenizerFiles, parse_rows};
use aweigh::model::gguf::Gguf;
use aweigh::model::{Adapter, DecoderConfig, Weights};

/// Parses bytes, and uses the result.
pub type Target = fn(&[u8]);

/// The targets' names, and what each does with its bytes.
pub const TARGETS: [(&str, Target); 7] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("tokenizer", tokenizer),
    ("template", template),
    ("config", config),
    ("settings", settings),
    ("jsonl", jsonl),
];

/// A safetensors file as a model's weights and as an adapter's.
pub fn safetensors(bytes: &[u8]) {
    let Ok(weights) = Weights::parse([("file", bytes)], "file") else { return };
    for tensor in weights.list() {
        if let Ok(stored) = weights.get(&tensor.name, &tensor.shape) {
            stored.to_f32();
        }
    }
    let config = br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}"#;
    let _ = Adapter::parse(("config", config), ("file", bytes)).is_ok();
}

/// A GGUF file, its tokenizer and its tensors.
pub fn gguf(bytes: &[u8]) {
    let Ok(file) = Gguf::parse(bytes) else { return };
    for tensor in file.tensors.values() {
        let Ok(bytes) = tensor.bytes.read() else { continue };
        if let Some(blocks) = tensor.kind.blocks(&bytes) {
            blocks.values();
        }
    }
    if let Ok(companions) = file.companions() {
        config(&companions.config);
    }
    safetensors(bytes);
}

/// tokenizer.json, and a text that it encodes and decodes.
pub fn tokenizer(bytes: &[u8]) {
    let files =
        TokenizerFiles { origin: "file".into(), tokenizer: bytes.to_vec(), ..TokenizerFiles::default() };
    let Ok(tokenizer) = ChatTokenizer::from_bytes(&files) else { return };
    if let Ok(ids) = tokenizer.encode_text("Hello, naïve wörld! 12345\n\t<|im_end|>", true) {
        let _ = tokenizer.decode(&ids, false).is_ok();
    }
}

/// A chat template, rendered.
pub fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let specials = [("eos_token".to_string(), "</s>".to_string())].into();
    let Ok(template) = ChatTemplate::new(text, &specials, &Default::default(), Some(0), "file") else {
        return;
    };
    let chat = [Message::new("system", "s"), Message::new("user", "u"), Message::new("assistant", "a")];
    let _ = (template.render(&chat, true).is_ok(), template.render(&chat[1..2], false).is_ok());
}

/// A model's and an adapter's configuration.
pub fn config(bytes: &[u8]) {
    if let Ok(config) = DecoderConfig::parse(bytes, "file") {
        let _ = (config.parameters(), config.tensors().len(), config.context());
    }
    let empty = b"\x02\0\0\0\0\0\0\0{}";
    let _ = Adapter::parse(("file", bytes), ("weights", empty)).is_ok();
}

/// A run's settings.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(layer) = Layer::from_toml(text, "file") {
        let _ = aweigh::config::RunConfig::resolve(vec![layer]).is_ok();
    }
}

/// A file of examples.
pub fn jsonl(bytes: &[u8]) {
    let _ = parse_rows(bytes, "file", None).is_ok();
}
