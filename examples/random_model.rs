//! Makes a model directory of a known shape with random bf16 weights and the built-in model's tokenizer. The
//! memory and time of a run of that size do not depend on the values of the weights.
//!
//! ```text
//! cargo run --release --example random_model -- llama-3.2-1b llama-1b
//! aweigh plan --model llama-1b --quantize nf4 --num-samples 4 --memory 2GB --fit
//! ```

use std::error::Error;
use std::fs::{File, create_dir_all, write};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use aweigh::model::DecoderConfig;
use aweigh::tiny;
use half::bf16;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, json};

/// The published config.json of each model, with only the keys that the decoder reads.
const SHAPES: [(&str, &str); 3] = [
    (
        "qwen2.5-0.5b",
        r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": true}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192},
            "max_position_embeddings": 131072, "tie_word_embeddings": true}"#,
    ),
    (
        "qwen2.5-3b",
        r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": true}"#,
    ),
];

/// Number of distinct random weights; the file repeats them.
const DISTINCT: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, directory] = &arguments[..] else {
        return Err("usage: random_model qwen2.5-0.5b|llama-3.2-1b|qwen2.5-3b DIR".into());
    };
    let (_, config) = SHAPES.iter().find(|(known, _)| known == name).ok_or("no such shape")?;
    let directory = PathBuf::from(directory);
    create_dir_all(&directory)?;
    let tensors = DecoderConfig::parse(config.as_bytes(), name)?.tensors();
    let (mut header, mut end) = (Map::new(), 0);
    for (tensor, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(tensor.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(directory.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let draw = |_| bf16::from_f32(random.random_range(-0.04f32..0.04)).to_le_bytes();
    let noise: Vec<u8> = (0..DISTINCT).flat_map(draw).collect();
    let ones: Vec<u8> = bf16::ONE.to_le_bytes().repeat(DISTINCT);
    for (tensor, shape) in &tensors {
        let source = if tensor.ends_with("norm.weight") { &ones } else { &noise };
        let mut left = 2 * shape.iter().product::<usize>();
        while left > 0 {
            let part = left.min(source.len());
            file.write_all(&source[..part])?;
            left -= part;
        }
    }
    file.into_inner()?.sync_all()?;
    write(directory.join("config.json"), config)?;
    let files = tiny::model().tokenizer;
    write(directory.join("tokenizer.json"), files.tokenizer)?;
    if let Some(config) = files.tokenizer_config {
        write(directory.join("tokenizer_config.json"), config)?;
    }
    println!("wrote {:.2} GB of random weights to {}", end as f64 / 1e9, directory.display());
    Ok(())
}
