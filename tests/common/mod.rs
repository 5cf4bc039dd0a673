//! Shared by the integration tests: one device per binary, golden files, comparisons.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::OnceLock;

use aweigh::data::packing::Group;
use aweigh::gpu::{Gpu, Options};
use aweigh::model::{Decoder, DecoderConfig, Training, Weights, serialize};
use aweigh::nn::{Arenas, Decay};
use aweigh::paranoid::Paranoid;
use aweigh::reference::compare::compare;
use aweigh::rng::values;

/// The device of this test binary, under WebGPU's default limits, the lowest that Aweigh supports. Pipelines
/// are compiled once, and some results of kernels are compared with their references.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let adapter = std::env::var("AWEIGH_GPU").ok();
        let witness = Some(Paranoid::new(|reading| pollster::block_on(reading)) as _);
        let options = Options { adapter, default_limits: true, witness, ..Options::default() };
        pollster::block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// A file under tests/golden.
pub fn golden(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A golden JSON file.
pub fn golden_json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&golden(path)).expect("golden JSON")
}

/// The numbers of a JSON array.
pub fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// The token ids of a JSON array.
pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    numbers(value).iter().map(|&v| v as u32).collect()
}

/// Loads a golden model.
pub fn load(fixture: &str, training: Training) -> Decoder {
    load_on(gpu(), fixture, training)
}

/// Loads a golden model onto `gpu`.
pub fn load_on(gpu: &Gpu, fixture: &str, training: Training) -> Decoder {
    let (config, bytes) =
        (golden(&format!("{fixture}/config.json")), golden(&format!("{fixture}/model.safetensors")));
    let weights = Weights::parse([("model.safetensors", bytes.as_slice())], fixture).expect("weights");
    Decoder::load(gpu, ("config.json", &config), &weights, training, Decay::All).expect("a decoder")
}

/// A Llama model of a few small layers with made-up weights.
pub fn made_up(gpu: &Gpu, vocab: usize, layers: usize, training: Training) -> Decoder {
    let config = format!(
        r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "vocab_size": {vocab}, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": {layers},
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "rope_theta": 1000.0, "tie_word_embeddings": true}}"#
    );
    let shapes = DecoderConfig::parse(config.as_bytes(), "config.json").expect("a configuration").tensors();
    let tensors = (1..).zip(&shapes).map(|(seed, (_, shape))| {
        values(seed, shape.iter().product()).into_iter().map(|v| v as f32).collect()
    });
    let tensors: Vec<Vec<f32>> = tensors.collect();
    let file = shapes.iter().zip(&tensors).map(|((name, shape), data)| (&name[..], &shape[..], &data[..]));
    let bytes = serialize(file).expect("a file");
    let weights = Weights::parse([("model.safetensors", &bytes[..])], "model").expect("weights");
    Decoder::load(gpu, ("config.json", config.as_bytes()), &weights, training, Decay::All).expect("a decoder")
}

/// Compares every trained tensor's values in `arenas` with the golden tensor of the same name.
pub fn compare_gradients(decoder: &Decoder, arenas: &Arenas, file: &str, prefix: &str, abs: f64, eps: f64) {
    let bytes = golden(file);
    let expected = Weights::parse([(file, bytes.as_slice())], file).expect("golden gradients");
    let found = pollster::block_on(arenas.read(gpu(), decoder.layout())).expect("gradients");
    assert!(!found.is_empty());
    for (name, shape, found) in decoder.layout().stored(&found) {
        let name = format!("{prefix}{name}");
        let expected = expected.get(&name, &shape).unwrap_or_else(|error| panic!("{error}")).to_f32();
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        compare(&found, &expected, abs, eps).unwrap_or_else(|message| panic!("{file}: {name}: {message}"));
    }
}

/// A group from owned ids.
pub fn group<'a>(prompt: &'a [u32], responses: &'a [Vec<u32>]) -> Group<'a> {
    Group { prompt, responses: responses.iter().map(Vec::as_slice).collect() }
}
