//! Writes the built-in model's tokenizer, configuration and data files: everything in `assets/tiny` except
//! the weights.
//!
//! ```sh
//! cargo run --release --example make_tiny_data [FOLDER]   # FOLDER is assets/tiny unless given
//! ```
//!
//! Running it again gives the same bytes: the texts come from fixed seeds, and gzip headers contain no time.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use aweigh::tiny::{Prompt, Split, good_answer, hostile_answer, training_conversation};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Entries of the vocabulary: 3 special tokens, 256 bytes, 765 merges.
const VOCABULARY: usize = 1024;
/// Conversations that the tokenizer is trained on.
const TOKENIZER_CONVERSATIONS: u32 = 40_000;
/// Seeds of the tokenizer's text, the negatives, the held-out set and the ordinary prompts.
const TOKENIZER_SEED: u32 = 1;
const NEGATIVES_SEED: u32 = 2;
const HELD_OUT_SEED: u32 = 3;
const ORDINARY_SEED: u32 = 4;
/// Rows of the data files.
const NEGATIVES: usize = 256;
const HELD_OUT: usize = 200;
const ORDINARY: usize = 96;

const END_OF_TEXT: &str = "<|endoftext|>";
const TURN_START: &str = "<|im_start|>";
const TURN_END: &str = "<|im_end|>";

/// ChatML without a default system message.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\\n' }}{% endif %}";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "assets/tiny".into()));
    std::fs::create_dir_all(&folder)?;
    let tokenizer = train_tokenizer().map_err(|error| error.to_string())?;
    let text = tokenizer.to_string(false).map_err(|error| error.to_string())?;
    std::fs::write(folder.join("tokenizer.json"), text)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config())?;
    write_json(&folder.join("config.json"), &model_config())?;
    write_json(
        &folder.join("generation_config.json"),
        &json!({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}),
    )?;
    write_rows(&folder.join("negatives.jsonl.gz"), &negatives())?;
    write_rows(&folder.join("heldout.jsonl.gz"), &held_out())?;
    write_rows(&folder.join("ordinary.jsonl.gz"), &ordinary())?;
    println!("wrote {}", folder.display());
    Ok(())
}

/// A byte-level BPE tokenizer. It sees plain text only: special tokens are never part of a merge.
fn train_tokenizer() -> tokenizers::Result<Tokenizer> {
    let special = [END_OF_TEXT, TURN_START, TURN_END].map(|token| AddedToken::from(token, true));
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    // The names of the roles follow a special token, without a space before them.
    let texts = (0..TOKENIZER_CONVERSATIONS).flat_map(|index| {
        let chat = training_conversation(TOKENIZER_SEED, index);
        ["system", "user", "assistant"]
            .map(String::from)
            .into_iter()
            .chain(chat.system.map(String::from))
            // Answers count twice: their length decides the cost of sampling and training.
            .chain([chat.user, chat.assistant.clone(), chat.assistant])
    });
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts)?;
    Ok(tokenizer)
}

fn tokenizer_config() -> Value {
    let special = |content: &str| {
        json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false, "special": true})
    };
    json!({
        "added_tokens_decoder": {"0": special(END_OF_TEXT), "1": special(TURN_START), "2": special(TURN_END)},
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": TURN_END,
        "model_max_length": 512,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

fn model_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 512,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
        "use_cache": true,
        "vocab_size": VOCABULARY,
    })
}

fn message(role: &str, content: &str) -> Value {
    json!([{"role": role, "content": content}])
}

/// TRL's unpaired form: flagged answers to training prompts.
fn negatives() -> Vec<Value> {
    let prompts = Prompt::distinct(Split::Train, NEGATIVES_SEED, NEGATIVES);
    (0..)
        .zip(&prompts)
        .map(|(index, prompt)| {
            let answer = hostile_answer(prompt, NEGATIVES_SEED, index);
            let (prompt, completion) = (message("user", &prompt.text), message("assistant", &answer));
            json!({"prompt": prompt, "completion": completion, "label": false})
        })
        .collect()
}

/// TRL's paired form on held-out prompts, for measuring only.
fn held_out() -> Vec<Value> {
    let prompts = Prompt::distinct(Split::HeldOut, HELD_OUT_SEED, HELD_OUT);
    (0..)
        .zip(&prompts)
        .map(|(index, prompt)| {
            json!({
                "prompt": message("user", &prompt.text),
                "chosen": message("assistant", &good_answer(prompt, HELD_OUT_SEED, index)),
                "rejected": message("assistant", &hostile_answer(prompt, HELD_OUT_SEED, index)),
                "topic": prompt.topic.name(),
            })
        })
        .collect()
}

/// Training prompts without answers, none of which is among the negatives.
fn ordinary() -> Vec<Value> {
    let flagged = Prompt::distinct(Split::Train, NEGATIVES_SEED, NEGATIVES);
    let prompts = Prompt::distinct(Split::Train, ORDINARY_SEED, NEGATIVES + ORDINARY);
    let others = prompts.into_iter().filter(|prompt| !flagged.contains(prompt)).take(ORDINARY);
    others.map(|prompt| json!({"prompt": message("user", &prompt.text)})).collect()
}

fn write_json(path: &Path, value: &Value) -> Result<(), Box<dyn Error>> {
    Ok(std::fs::write(path, format!("{value:#}\n"))?)
}

/// Gzipped JSONL; flate2 leaves the header's time at zero.
fn write_rows(path: &Path, rows: &[Value]) -> Result<(), Box<dyn Error>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for row in rows {
        writeln!(gzip, "{row}")?;
    }
    Ok(std::fs::write(path, gzip.finish()?)?)
}
