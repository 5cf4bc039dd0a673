//! The files under `assets/tiny`, which are built into the library.

use crate::data::TokenizerFiles;
use crate::model::ModelBytes;

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!("../../assets/tiny/", $name)).as_slice()
    };
}

/// The built-in model's name, for messages.
pub const NAME: &str = "tiny";

/// Prompts with hostile answers, labelled as flagged: the file's name, and its bytes (gzipped JSONL in TRL's
/// form).
pub const NEGATIVES: (&str, &[u8]) = ("tiny/negatives.jsonl.gz", asset!("negatives.jsonl.gz"));

/// Held-out prompts, each with a good answer, a hostile answer and its topic: the file's name, and its bytes
/// (gzipped JSONL).
pub const HELD_OUT: (&str, &[u8]) = ("tiny/heldout.jsonl.gz", asset!("heldout.jsonl.gz"));

/// Customers' messages that are not flagged: the file's name, and its bytes (gzipped JSONL).
pub const ORDINARY: (&str, &[u8]) = ("tiny/ordinary.jsonl.gz", asset!("ordinary.jsonl.gz"));

/// Name and bytes of every file of the built-in model except the weights, for `export`.
pub const FILES: [(&str, &[u8]); 4] = [
    ("config.json", asset!("config.json")),
    ("generation_config.json", asset!("generation_config.json")),
    ("tokenizer.json", asset!("tokenizer.json")),
    ("tokenizer_config.json", asset!("tokenizer_config.json")),
];

/// The built-in model.
pub fn model() -> ModelBytes<'static> {
    ModelBytes {
        quantize: None,
        offload: false,
        judge: false,
        name: NAME,
        config: asset!("config.json"),
        weights: vec![("tiny/model.safetensors", asset!("model.safetensors").into())],
        tokenizer: TokenizerFiles {
            origin: NAME.into(),
            tokenizer: asset!("tokenizer.json").to_vec(),
            tokenizer_config: Some(asset!("tokenizer_config.json").to_vec()),
            generation_config: Some(asset!("generation_config.json").to_vec()),
            ..TokenizerFiles::default()
        },
    }
}
