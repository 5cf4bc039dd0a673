//! Models and adapters as other programs write them, in all commands: read as intended, or refused with the
//! real reason.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::room::{Room, of_repository, texts};
use super::weights::{WEIGHTS, tensors, write};

#[test]
fn a_model_directory_that_is_none() {
    let room = Room::new();
    room.align_refuses(
        "nowhere",
        &[],
        &["--model: expected a model's directory, a GGUF file, or tiny, found nothing at nowhere"],
    );
    room.align_refuses("flagged.jsonl", &[], &["--model", "found a file at flagged.jsonl"]);
    fs::create_dir(room.path("bare")).unwrap();
    room.align_refuses("bare", &[], &["--model bare: expected config.json in it, found no such file"]);
}

#[test]
fn missing_and_truncated_weights() {
    let room = Room::new();
    let weights = fs::read(room.path("model/model.safetensors")).unwrap();
    fs::remove_file(room.path("model/model.safetensors")).unwrap();
    room.align_refuses(
        "model",
        &[],
        &["--model model: expected model.safetensors in it", "download the whole model"],
    );
    for length in [0, 5, 3000, weights.len() - 1] {
        room.write("model/model.safetensors", &weights[..length]);
        let found = format!("found a damaged file of {length} bytes");
        room.align_refuses(
            "model",
            &[],
            &["model.safetensors: expected a complete safetensors file", &found, "download"],
        );
    }
}

#[test]
fn a_gguf_file_that_is_damaged_or_not_supported() {
    let room = Room::new();
    let small: &[u8] = include_bytes!("../../tests/golden/gguf/small.gguf");
    let generate = ["generate", "--model", "model.gguf", "--prompt", "hi"];
    for (bytes, parts) in [
        (small.to_vec(), ["model.gguf: expected tensor token_embd.weight, found none", "another version"]),
        (small[..small.len() - 40].to_vec(), ["model.gguf: expected tensor", "bytes of tensor data in all"]),
        (small[..60].to_vec(), ["model.gguf: expected", "download the file again"]),
        (b"GGML".to_vec(), ["model.gguf: expected a GGUF file", "GGML"]),
        (Vec::new(), ["model.gguf", "expected"]),
    ] {
        room.write("model.gguf", &bytes);
        room.refuses(&generate, &parts);
    }
    let other = String::from_utf8_lossy(small).find("llama").expect("its architecture");
    let mut bytes = small.to_vec();
    bytes[other..other + 5].copy_from_slice(b"mamba");
    room.write("model.gguf", &bytes);
    room.refuses(&generate, &["a supported architecture (llama, qwen2, qwen3), found \"mamba\""]);
}

#[test]
fn weights_that_are_not_the_configuration_s() {
    let room = Room::new();
    room.edit("model/config.json", "\"intermediate_size\": 384", "\"intermediate_size\": 380");
    let place = Path::new("model").join("model.safetensors").display().to_string();
    let tensor = format!(
        "{place}: tensor model.layers.0.mlp.gate_proj.weight: expected shape [380, 128], found [384, 128]"
    );
    room.align_refuses("model", &[], &[&tensor, "must belong together"]);
    room.edit("model/config.json", "\"intermediate_size\": 380", "\"intermediate_size\": 384");
    room.edit("model/config.json", "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6");
    let missing = "model: expected tensor model.layers.5.input_layernorm.weight, found none among 47 tensors";
    room.align_refuses("model", &[], &[missing, "complete model directory"]);
    let generate = ["generate", "--model", "model", "--prompt", "hi"];
    room.refuses(&generate, &[missing]);
}

#[test]
fn an_unknown_architecture() {
    let room = Room::new();
    room.edit("model/config.json", "LlamaForCausalLM", "MambaForCausalLM");
    let parts = [
        "config.json: expected a supported architecture (LlamaForCausalLM, MistralForCausalLM, ",
        "GPTNeoXForCausalLM), found \"MambaForCausalLM\"",
    ];
    room.align_refuses("model", &[], &parts);
    room.write("model/config.json", "{");
    room.align_refuses("model", &[], &["config.json", "found EOF while parsing"]);
}

#[test]
fn an_adapter_of_another_model() {
    let room = Room::new();
    let other = of_repository("tests/golden/tiny_tied/adapter");
    let other = other.to_str().unwrap();
    let tensor = "tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let parts =
        [tensor, "expected shape [4, 128], found [4, 32]", "use an adapter that was made for this model"];
    room.align_refuses("tiny", &["--adapter", other], &parts);
    room.refuses(&["generate", "--model", "tiny", "--adapter", other, "--prompt", "hi"], &parts);
    let parts = ["--adapter model: expected adapter_config.json in it, found no such file", "both files"];
    room.align_refuses("tiny", &["--adapter", "model"], &parts);
}

/// A few answers to score.
const ANSWERS: &str = r#"{"prompt": "a", "completion": " printer"}
{"prompt": "The", "completion": " box is green."}
"#;

fn scores(room: &Room, more: &[&str]) -> Vec<f64> {
    room.write("answers.jsonl", ANSWERS);
    let output = room.run(&[&["score", "--data", "answers.jsonl", "-q"], more].concat());
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["logp"].as_f64().unwrap())
        .collect()
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs())
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let room = Room::new();
    room.write("answers.jsonl", ANSWERS);
    let whole = tensors(&room, WEIGHTS);
    let name = "model.layers.2.mlp.up_proj.weight";
    let at = whole.iter().position(|tensor| tensor.0 == name).unwrap();
    let width = whole[at].2[1];
    // NaN in F16, and the infinities to which a conversion to F16 turns large numbers.
    for (bits, said) in [(0x7e00u16, "which is NaN"), (0x7c00, "which is inf"), (0xfc00, "which is -inf")] {
        let mut spoilt = whole.clone();
        assert_eq!(spoilt[at].1, Dtype::F16);
        let element = 3 * width + 5;
        spoilt[at].3[2 * element..2 * element + 2].copy_from_slice(&bits.to_le_bytes());
        write(&room, WEIGHTS, &spoilt);
        let message = format!("tensor {name}: expected finite numbers, found element [3, 5], {said}");
        room.refuses(&["score", "--model", "model", "--data", "answers.jsonl"], &[&message]);
        room.refuses(&["generate", "--model", "model", "--prompt", "hi"], &[&message]);
        room.refuses(&["export", "--model", "model", "--output", "e"], &[&message]);
        room.align_refuses("model", &[], &[&message]);
        room.align_refuses("model", &["--full"], &[&message]);
    }
}

/// The head is used as transformers 5 uses it, and an exported model says so to all readers.
#[test]
fn a_head_that_differs_from_the_embedding_is_the_model_s() {
    let room = Room::new();
    let tied = scores(&room, &["--model", "model"]);
    let mut all = tensors(&room, WEIGHTS);
    let embedding = all.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").unwrap().clone();
    let head = |bytes: Vec<u8>| ("lm_head.weight".to_string(), embedding.1, embedding.2.clone(), bytes);
    all.push(head(embedding.3.clone()));
    write(&room, WEIGHTS, &all);
    assert_eq!(scores(&room, &["--model", "model"]), tied, "the same head is none of its own");
    // The head's rows in reverse order.
    let row = 2 * embedding.2[1];
    let turned: Vec<u8> = embedding.3.chunks_exact(row).rev().flatten().copied().collect();
    *all.last_mut().unwrap() = head(turned);
    write(&room, WEIGHTS, &all);
    let own = scores(&room, &["--model", "model"]);
    assert!(!near(&own, &tied), "{own:?}");
    assert_eq!(room.json(&["inspect", "--model", "model"])["settings"]["tie_word_embeddings"], "false");
    for target in ["exported", "exported.gguf"] {
        let done = room.run(&["export", "--model", "model", "--output", target, "-q"]);
        assert!(done.status.success(), "{}", texts(&done).1);
        assert!(near(&scores(&room, &["--model", target]), &own), "{target}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("exported/config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn checkpoints_that_others_have_quantised_are_named() {
    let room = Room::new();
    room.write("answers.jsonl", ANSWERS);
    let plain = tensors(&room, WEIGHTS);
    let config = fs::read(room.path("model/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let kinds: [(&str, &str, Dtype); 4] = [
        ("bitsandbytes", "", Dtype::U8),
        ("gptq", "qweight", Dtype::I32),
        ("awq", "qzeros", Dtype::I32),
        ("fp8", "", Dtype::F8_E4M3),
    ];
    for (method, ending, dtype) in kinds {
        let mut all = plain.clone();
        let up = all.iter_mut().find(|tensor| tensor.0.ends_with("0.mlp.up_proj.weight")).unwrap();
        if !ending.is_empty() {
            up.0 = up.0.replace("weight", ending);
        }
        let size = if dtype == Dtype::I32 { 4 } else { 1 };
        (up.1, up.2, up.3) = (dtype, vec![64, 2], vec![1; 128 * size]);
        write(&room, WEIGHTS, &all);
        config["quantization_config"] = json!({ "quant_method": method });
        room.write("model/config.json", config.to_string());
        let found = format!("weights quantised by {method} (model.layers.0.mlp.up_proj");
        let parts = [found.as_str(), "--quantize nf4"];
        room.refuses(&["inspect", "--model", "model"], &parts);
        room.refuses(&["score", "--model", "model", "--data", "answers.jsonl"], &parts);
    }
}

/// Masks and frequencies in old checkpoints are accepted and exported; other tensors that no layer reads are
/// warned of.
#[test]
fn tensors_that_no_layer_reads() {
    let room = Room::new();
    let before = scores(&room, &["--model", "model"]);
    let mut all = tensors(&room, WEIGHTS);
    all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Dtype::F32, vec![1], vec![0; 4]));
    all.push(("model.layers.0.self_attn.bias".into(), Dtype::BOOL, vec![2, 2], vec![1; 4]));
    all.push((
        "model.layers.0.self_attn.masked_bias".into(),
        Dtype::F16,
        vec![],
        0xfc00u16.to_le_bytes().into(),
    ));
    write(&room, WEIGHTS, &all);
    let quiet = room.run(&["export", "--model", "model", "--output", "e", "-q"]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", texts(&quiet).1);
    assert_eq!(scores(&room, &["--model", "e"]), before);
    assert_eq!(tensors(&room, "e/model.safetensors").len(), all.len());
    all.push(("model.layers.0.self_attn.q_proj.bias".into(), Dtype::F16, vec![1], vec![0; 2]));
    write(&room, WEIGHTS, &all);
    let told = texts(&room.run(&["inspect", "--model", "model"])).1;
    let expected = "ignored 1 tensors that no layer of this configuration reads; the first is \
                    model.layers.0.self_attn.q_proj.bias";
    assert!(told.contains(expected), "{told}");
}

#[test]
fn gguf_files_are_named_for_what_they_are() {
    let room = Room::new();
    let done = room.run(&["export", "--model", "model", "--output", "m.gguf", "-q"]);
    assert!(done.status.success(), "{}", texts(&done).1);
    let whole = fs::read(room.path("m.gguf")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|bytes| bytes == from.as_bytes())
            .unwrap_or_else(|| panic!("{from}"));
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let row = r#"{"prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}]}"#;
    room.write("chat.jsonl", row.replace('\n', " "));
    let score = ["score", "--model", "m.gguf", "--data", "chat.jsonl"];
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("model/tokenizer.json")).unwrap()).unwrap();
    if config["model"]["byte_fallback"] != true {
        room.write("m.gguf", replaced("gpt-2", "gpt-9"));
        room.refuses(
            &score,
            &["found \"gpt-9\"\n  what to do: use the model's Hugging Face directory instead"],
        );
    }
    room.write("m.gguf", replaced("tokenizer.chat_template", "tokenizer.chat_templatX"));
    let parts = [
        "(m.gguf): expected a chat template",
        "no tokenizer.chat_template in its metadata",
        "--chat-template",
    ];
    room.refuses(&score, &parts);
}

#[test]
fn adapters_say_what_they_are_for() {
    let room = Room::new();
    let align =
        ["align", "--model", "model", "--train", "flagged.jsonl", "--output-dir", "run", "--method", "npo"];
    let short = ["--max-steps", "1", "--no-stop", "--num-completions", "0", "-q"];
    assert!(room.run(&[&align[..], &short].concat()).status.success());
    room.write("answers.jsonl", ANSWERS);
    let score = ["score", "--model", "model", "--data", "answers.jsonl", "--adapter", "run/adapter"];
    assert!(!texts(&room.run(&score)).1.contains("warning"), "the model that it was made for");
    let file = "run/adapter/adapter_config.json";
    room.edit(
        file,
        "\"base_model_name_or_path\": \"model\"",
        "\"base_model_name_or_path\": \"org/SmolLM2-135M\", \"supernova_size\": 3",
    );
    let told = texts(&room.run(&score)).1;
    assert!(!told.contains("it was made for"), "a folder's name that tells nothing: {told}");
    assert!(told.contains("unknown keys, which have no effect: supernova_size"), "{told}");
    fs::rename(room.path("model"), room.path("qwen2-0.5b")).unwrap();
    let told = texts(&room.run(&[
        "score",
        "--model",
        "qwen2-0.5b",
        "--data",
        "answers.jsonl",
        "--adapter",
        "run/adapter",
    ]))
    .1;
    fs::rename(room.path("qwen2-0.5b"), room.path("model")).unwrap();
    assert!(
        told.contains("it was made for org/SmolLM2-135M; on qwen2-0.5b it may behave differently"),
        "{told}"
    );
    room.edit(file, "\"supernova_size\": 3", "\"alora_invocation_tokens\": [4, 7]");
    for command in [&score[..], &["export", "--model", "model", "--adapter", "run/adapter", "--output", "e"]]
    {
        room.refuses(command, &["an unsupported \"alora_invocation_tokens\", which is switched on"]);
    }
    room.refuses(
        &["score", "--model", "model", "--data", "answers.jsonl", "--adapter", "run"],
        &["give the adapter/ folder in it"],
    );
    fs::remove_dir_all(room.path("run")).unwrap();
    fs::create_dir(room.path("mlx")).unwrap();
    room.write("mlx/adapters.safetensors", "x");
    room.refuses(
        &["score", "--model", "model", "--data", "answers.jsonl", "--adapter", "mlx"],
        &["MLX's format"],
    );
}
