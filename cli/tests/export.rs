//! `aweigh export`: safetensors and GGUF.

use std::fs;

use safetensors::tensor::Dtype;

use super::room::{Room, SMALL};
use super::weights::{WEIGHTS, tensors, write};

#[test]
fn an_output_that_exists() {
    let room = Room::new();
    fs::create_dir(room.path("out")).unwrap();
    room.write("out/thesis.tex", "years of work");
    let parts =
        ["--output-dir: expected a folder that does not exist yet, found out, which exists and is not empty"];
    room.align_refuses("tiny", &[], &[&parts[..], &["choose another folder"]].concat());
    room.align_refuses(
        "tiny",
        &["--overwrite"],
        &["with \"thesis.tex\" in it", "--overwrite replaces only what a run"],
    );
    let score = ["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "flagged.jsonl"];
    room.refuses(&score, &["--output: expected a file that does not exist yet, found flagged.jsonl"]);
    room.refuses(
        &["export", "--model", "tiny", "--output", "out"],
        &["expected a folder that does not exist yet"],
    );
}

#[test]
fn a_model_is_written_as_a_gguf_file() {
    let room = Room::new();
    let train = ["align", "--model", "tiny", "--output-dir", "run", "--learning-rate", "1e-3"];
    room.json(&[&train[..], &SMALL[..]].concat());
    let answer = |model: &[&str]| {
        let prompt = ["--prompt", "My printer is broken.", "--temperature", "0", "--max-new-tokens", "16"];
        room.json(&[&["generate", "--model"], model, &prompt].concat())["answers"][0]["completion"].clone()
    };
    let export = ["export", "--model", "tiny", "--adapter", "run/adapter", "--output"];
    let figures = room.json(&[&export[..], &["merged.gguf", "--dtype", "float32"]].concat());
    assert_eq!((&figures["dtype"], &figures["merged_layers"]), (&"F32".into(), &35.into()));
    assert_eq!(answer(&["merged.gguf"]), answer(&["tiny", "--adapter", "run/adapter"]));
    assert_eq!(room.json(&[&export[..], &["auto.gguf"]].concat())["dtype"], "F16");
    room.json(&[&export[..], &["small.gguf", "--dtype", "q8_0"]].concat());
    let types = room.json(&["inspect", "--model", "small.gguf"])["types"].clone();
    assert_eq!(types[1]["dtype"], "Q8_0", "{types}");
    assert!(answer(&["small.gguf"]).is_string());
    // A GGUF file can be exported again.
    room.json(&["export", "--model", "merged.gguf", "--output", "again.gguf", "--dtype", "float32"]);
    assert_eq!(answer(&["again.gguf"]), answer(&["merged.gguf"]));

    room.refuses(
        &[&export[..], &["auto.gguf"]].concat(),
        &["--output: expected a file that does not exist yet"],
    );
    room.refuses(&[&export[..], &["folder", "--dtype", "q8_0"]].concat(), &["--dtype q8_0", ".gguf"]);
    room.edit("model/config.json", "LlamaForCausalLM", "Phi3ForCausalLM");
    room.edit("model/config.json", "\"model_type\": \"llama\"", "\"model_type\": \"phi3\"");
    let phi = ["export", "--model", "model", "--output", "phi.gguf"];
    room.refuses(
        &phi,
        &["expected an architecture that GGUF export supports (LlamaForCausalLM, ", "Phi3ForCausalLM"],
    );
}

/// The adapter alone, for llama.cpp: tests/python/check_gguf_adapter.py compares its answers.
#[test]
fn an_adapter_is_written_as_a_gguf_file() {
    let room = Room::new();
    let train = ["align", "--model", "tiny", "--output-dir", "run", "--learning-rate", "1e-3"];
    room.json(&[&train[..], &SMALL[..]].concat());
    let export = ["export", "--model", "tiny", "--adapter", "run/adapter", "--adapter-only", "--output"];
    let figures = room.json(&[&export[..], &["adapter.gguf"]].concat());
    let half = room.json(&[&export[..], &["half.gguf", "--dtype", "float16"]].concat());
    assert!(half["bytes"].as_u64() < figures["bytes"].as_u64());
    let bytes = room.read("adapter.gguf");
    let text = String::from_utf8_lossy(&bytes[..20_000.min(bytes.len())]).into_owned();
    for part in ["adapter.lora.alpha", "blk.0.attn_q.weight.lora_a", "blk.0.ffn_down.weight.lora_b"] {
        assert!(text.contains(part), "no {part}");
    }
    room.refuses(&[&export[..], &["folder"]].concat(), &["--output: expected a name that ends in .gguf"]);
    room.refuses(&[&export[..], &["a.gguf", "--dtype", "q8_0"]].concat(), &["float32 or float16"]);
    room.refuses(&["inspect", "--model", "adapter.gguf"], &["an adapter"]);
}

#[test]
fn values_that_f16_cannot_hold_are_not_written() {
    let room = Room::new();
    let mut all = tensors(&room, WEIGHTS);
    let norm = all.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
    let count = norm.3.len() / 2;
    (norm.1, norm.3) = (Dtype::F32, vec![70_000f32; count].into_iter().flat_map(f32::to_le_bytes).collect());
    write(&room, WEIGHTS, &all);
    let export = ["export", "--model", "model", "--output", "e", "--dtype", "float16"];
    room.refuses(&export, &["tensor model.norm.weight: expected values up to 65504", "--dtype bfloat16"]);
}

#[test]
fn ollama_gets_a_gguf_file_and_a_modelfile() {
    let room = Room::new();
    let line = ["export", "--model", "model", "--modelfile", "--output", "for-ollama"];
    let figures = room.json(&line);
    assert_eq!(figures["files"], serde_json::json!(["Modelfile"]));
    let text = fs::read_to_string(room.path("for-ollama/Modelfile")).unwrap();
    assert!(text.starts_with("FROM ./model.gguf\nTEMPLATE \"\"\"{{- range .Messages }}"), "{text}");
    assert!(text.contains("PARAMETER stop \""), "{text}");
    // The file beside it is a model.
    let inspected = room.json(&["inspect", "--model", "for-ollama/model.gguf"]);
    assert!(inspected["parameters"].as_u64().unwrap() > 1_000_000, "{inspected}");
    room.refuses(&line, &["for-ollama, which exists"]);
    let file = ["export", "--model", "model", "--modelfile", "--output", "other.gguf"];
    room.refuses(&file, &["--output: expected a directory, for --modelfile"]);
}
