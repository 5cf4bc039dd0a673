//! The model built into the program and its data: a help desk that is rude a third of the time.
//!
//! `examples/make_tiny_data.rs` and `examples/train_tiny.rs` made all of it; [`crate::eval::helpdesk`]
//! defines the texts.

use crate::data::TokenizerFiles;
use crate::model::ModelBytes;

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!("../assets/tiny/", $name)).as_slice()
    };
}

/// What messages call the embedded model.
pub const NAME: &str = "tiny";

/// Prompts with hostile answers, flagged: JSONL in TRL's form, gzipped.
pub const NEGATIVES: (&str, &[u8]) = ("tiny/negatives.jsonl.gz", asset!("negatives.jsonl.gz"));

/// Held-out prompts, each with a good answer, a hostile answer and its topic: JSONL, gzipped.
pub const HELD_OUT: (&str, &[u8]) = ("tiny/heldout.jsonl.gz", asset!("heldout.jsonl.gz"));

/// Every file of the embedded model except the weights, for `export`.
pub const FILES: [(&str, &[u8]); 4] = [
    ("config.json", asset!("config.json")),
    ("generation_config.json", asset!("generation_config.json")),
    ("tokenizer.json", asset!("tokenizer.json")),
    ("tokenizer_config.json", asset!("tokenizer_config.json")),
];

/// The embedded model.
pub fn model() -> ModelBytes<'static> {
    ModelBytes {
        quantize: None,
        offload: false,
        judge: false,
        name: NAME,
        config: asset!("config.json"),
        weights: vec![("tiny/model.safetensors", asset!("model.safetensors"))],
        tokenizer: TokenizerFiles {
            origin: NAME.into(),
            tokenizer: asset!("tokenizer.json").to_vec(),
            tokenizer_config: Some(asset!("tokenizer_config.json").to_vec()),
            generation_config: Some(asset!("generation_config.json").to_vec()),
            ..TokenizerFiles::default()
        },
    }
}
