//! The program as a user meets it: one clear message and exit code 2 for wrong input, with nothing written;
//! and a whole run.

mod commands;
mod eval;
mod hub;
mod inputs;
mod memory;
mod others;
mod resume;
mod room;
mod speed;

use std::fs;
use std::path::Path;

use room::{Room, TRAIN, of_repository, texts};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn no_adapter() {
    let room = Room::new();
    let lines = [
        &[&["align", "--model", "tiny"], &TRAIN[..]].concat()[..],
        &["devices"],
        &["generate", "--model", "tiny", "--prompt", "hi"],
        &["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "scored.jsonl"],
        &["sample", "--model", "tiny", "--data", "flagged.jsonl", "--output", "answers.jsonl"],
        &["selftest"],
    ];
    for line in lines {
        let mut command = room.command();
        // Two names of the same setting, for newer and older Vulkan loaders; the third excludes other
        // systems' drivers.
        let none = room.path("no-driver.json");
        command.env("VK_DRIVER_FILES", &none).env("VK_ICD_FILENAMES", &none).env("WGPU_BACKEND", "vulkan");
        command.env_remove("AWEIGH_GPU").args(line);
        room.refused(
            &mut command,
            &["no usable GPU adapter: none found", "what to do: install a Vulkan driver"],
        );
    }
    room.refuses(
        &["selftest", "--gpu", "no such card"],
        &["no adapter matches \"no such card\"", "`aweigh devices`"],
    );
}

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
        &["--model model: expected model.safetensors in it", "fetch the whole model"],
    );
    for length in [0, 5, 3000, weights.len() - 1] {
        room.write("model/model.safetensors", &weights[..length]);
        let found = format!("found a damaged file of {length} bytes");
        room.align_refuses(
            "model",
            &[],
            &["model.safetensors: expected a whole safetensors file", &found, "download"],
        );
    }
}

#[test]
fn a_model_is_inspected_without_a_gpu() {
    let room = Room::new();
    let figures = room.json(&["inspect", "--model", "model", "--tensors"]);
    assert_eq!(figures["architecture"], "LlamaForCausalLM");
    assert_eq!(figures["settings"]["num_hidden_layers"], "5");
    assert_eq!(figures["types"][0]["tensors"], 47);
    assert_eq!(figures["tensors"].as_array().map(Vec::len), Some(47));
    room.edit("model/config.json", "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6");
    // A model that cannot be read is an error, as it is for the other commands.
    room.refuses(&["inspect", "--model", "model"], &["expected tensor model.layers.5.", "found none"]);
}

#[test]
fn a_gguf_file_that_is_damaged_or_not_supported() {
    let room = Room::new();
    let small: &[u8] = include_bytes!("../../tests/golden/gguf/small.gguf");
    let generate = ["generate", "--model", "model.gguf", "--prompt", "hi"];
    for (bytes, parts) in [
        (small.to_vec(), ["model.gguf: expected tensor token_embd.weight, found none", "another version"]),
        (small[..small.len() - 40].to_vec(), ["model.gguf: expected tensor", "bytes of tensor data in all"]),
        (small[..60].to_vec(), ["model.gguf: expected", "download it again"]),
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
fn data_that_cannot_be_read() {
    let room = Room::new();
    let flagged = fs::read_to_string(room.path("flagged.jsonl")).unwrap();
    let mut lines: Vec<&str> = flagged.lines().collect();
    lines[2] = &lines[2][..40];
    room.write("flagged.jsonl", lines.join("\n"));
    room.align_refuses(
        "tiny",
        &[],
        &["flagged.jsonl:3: expected one JSON object, found invalid JSON", "mend this line"],
    );
    room.write("flagged.jsonl", "{\"prompt\": \"a\", \"completion\": 3, \"label\": false}\n");
    room.align_refuses("tiny", &[], &["flagged.jsonl:1: completion: expected a string"]);
    room.write("flagged.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n");
    room.align_refuses("tiny", &[], &["flagged.jsonl:1: expected the keys", "found the keys "]);
    room.write("flagged.jsonl", "\n\n");
    room.align_refuses("tiny", &[], &["flagged.jsonl: expected at least one row, found none"]);
    room.write("flagged.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n");
    room.align_refuses("tiny", &[], &["flagged.jsonl: expected rows with a flagged answer, found none"]);
    room.write("flagged.jsonl", [0x1f, 0x8b, 8, 0, 0]);
    room.align_refuses("tiny", &[], &["flagged.jsonl:1: expected readable data", "seems damaged"]);
    fs::remove_file(room.path("flagged.jsonl")).unwrap();
    room.align_refuses(
        "tiny",
        &[],
        &["--train: expected a file at flagged.jsonl, found nothing", "check the path"],
    );
    let score = ["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "scored.jsonl"];
    room.refuses(&score, &["--data: expected a file at flagged.jsonl, found nothing"]);
}

#[test]
fn settings_that_do_not_exist_or_fit() {
    let room = Room::new();
    room.write("run.toml", "# a comment\n[train]\nlearnin_rate = 1e-5\n");
    let key = "run.toml:3: train.learnin_rate: expected a key of [train]";
    room.align_refuses("tiny", &["--config", "run.toml"], &[key, "did you mean \"learning_rate\"?"]);
    room.write("run.toml", "[trian]\nseed = 1\n");
    room.align_refuses(
        "tiny",
        &["--config", "run.toml"],
        &["run.toml:1", "\"trian\", which is no section", "[train]"],
    );
    room.write("run.toml", "[train]\nseed = \"x\"\n");
    room.align_refuses("tiny", &["--config", "run.toml"], &["run.toml:2: train.seed", "found the text"]);
    room.align_refuses(
        "tiny",
        &["--config", "none.toml"],
        &["--config: expected a file at none.toml, found nothing"],
    );
    for (flag, value, expected) in [
        ("--num-samples", "0", "expected a whole number from 1 to 1024, found 0"),
        ("--learning-rate", "-1", "expected a number above 0, found -1"),
        ("--top-p", "2", "expected a number above 0 and up to 1, found 2"),
        ("--temperature", "0", "expected a number above 0, found 0, which gives 11 copies"),
        ("--max-steps", "0", "expected a whole number of at least 1, found 0"),
        ("--lora-dropout", "1", "expected a number from 0 to below 1, found 1"),
    ] {
        room.align_refuses("tiny", &[flag, value], &[flag, expected]);
    }
    let generate = ["generate", "--model", "tiny", "--prompt", "hi"];
    room.refuses(
        &[&generate[..], &["--top-p", "2"]].concat(),
        &["--top-p: expected a number above 0 and up to 1"],
    );
    room.refuses(
        &["align", "--model", "tiny", "--train", "flagged.jsonl"],
        &["--output-dir (output.output_dir): expected a folder"],
    );
    let unknown = ["no_such_proj, which matches none", "such as q_proj"];
    room.align_refuses("tiny", &["--target-modules", "no_such_proj"], &unknown);
}

/// The parser of flags refuses these; its messages have another form.
#[test]
fn flags_that_cannot_be_parsed() {
    let room = Room::new();
    for (flag, value) in [
        ("--num-samples", "-1"),
        ("--learning-rate", "fast"),
        ("--method", "ppo"),
        ("--reference-positive", "yesterday"),
        ("--no-such-flag", "1"),
    ] {
        let mut command = room.command();
        command.args(["align", "--model", "tiny"]).args(TRAIN).args([flag, value]);
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(flag), "{stderr}");
    }
    assert!(!room.path("out").exists());
}

#[test]
fn prompts_longer_than_the_context() {
    let room = Room::new();
    let long = "my printer is broken and ".repeat(200);
    let row = |prompt: &str| {
        format!(
            "{{\"prompt\": [{{\"role\": \"user\", \"content\": \"{prompt}\"}}], \"completion\": [{{\"role\": \
             \"assistant\", \"content\": \"no\"}}], \"label\": false}}\n"
        )
    };
    room.write("flagged.jsonl", row("help") + &row(&long));
    let parts =
        ["flagged.jsonl:2: prompt and answer: expected at most 512 tokens, the model's context, found"];
    room.align_refuses(
        "tiny",
        &["--max-prompt-length", "4000"],
        &[&parts[..], &["lower max_prompt_length"]].concat(),
    );
    let parts = [
        "flagged.jsonl:1: prompt, bare or with the safety instruction, and max_new_tokens: expected at most \
         512 tokens",
    ];
    room.align_refuses("tiny", &["--max-new-tokens", "600"], &parts);
    let sample = ["sample", "--model", "tiny", "--data", "flagged.jsonl", "--output", "answers.jsonl"];
    let parts = ["flagged.jsonl:2: expected at most 512 tokens, the model's context", "--max-new-tokens"];
    room.refuses(&[&sample[..], &["--max-prompt-length", "4000"]].concat(), &parts);
    let score = ["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "scored.jsonl"];
    room.refuses(&score, &["flagged.jsonl:2: expected at most 512 tokens", "of the prompt and"]);
    room.refuses(
        &["generate", "--model", "tiny", "--prompt", &long],
        &["the prompt: expected 1 to 511 tokens", "found"],
    );
}

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
fn a_chat_template_of_the_users_own() {
    let room = Room::new();
    let text = fs::read_to_string(room.path("model/tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let template = config.as_object_mut().unwrap().remove("chat_template").unwrap();
    room.write("model/tokenizer_config.json", config.to_string());
    room.write("own.jinja", template.as_str().unwrap());
    let answer = |model: &[&str]| {
        let prompt = ["--prompt", "My printer is broken.", "--temperature", "0", "--max-new-tokens", "8"];
        [&["generate", "--model"], model, &prompt].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    fn strings(words: &[String]) -> Vec<&str> {
        words.iter().map(String::as_str).collect()
    }
    room.refuses(&strings(&answer(&["model"])), &["a model with a chat template", "--chat-template FILE"]);
    room.align_refuses(
        "model",
        &[],
        &["a chat template, as the prompts are conversations", "--chat-template FILE"],
    );
    let found = room.json(&strings(&answer(&["model", "--chat-template", "own.jinja"])));
    let expected = room.json(&strings(&answer(&["tiny"])));
    assert_eq!(found["answers"][0]["completion"], expected["answers"][0]["completion"]);
    let figures = room.json(&["inspect", "--model", "model", "--chat-template", "own.jinja"]);
    assert_eq!(figures["tokenizer"]["chat_template"], true);
    room.write("own.jinja", "{% for m in messages %}");
    room.refuses(
        &strings(&answer(&["model", "--chat-template", "own.jinja"])),
        &["own.jinja: chat template", "line 1"],
    );
    room.refuses(
        &strings(&answer(&["model", "--chat-template", "none.jinja"])),
        &["--chat-template", "none.jinja"],
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
    // And exported again from a GGUF file.
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
        &["expected an architecture that is written as GGUF (LlamaForCausalLM, ", "Phi3ForCausalLM"],
    );
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

/// Lines of a JSONL file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The smallest run that uses everything.
const SMALL: [&str; 10] = [
    "--max-samples",
    "10",
    "--max-steps",
    "2",
    "--num-samples",
    "2",
    "--max-new-tokens",
    "8",
    "--train",
    "flagged.jsonl",
];

/// What every step logs.
const STEP_METRICS: [&str; 15] = [
    "loss",
    "rewards/anchor",
    "rewards/negative",
    "rewards/margins",
    "rewards/accuracies",
    "logps/anchor",
    "logps/negative",
    "kl/anchor",
    "entropy",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "tokens_per_second",
    "epoch",
    "global_step",
];

#[test]
fn a_run_writes_its_folder_and_can_be_repeated() {
    let room = Room::new();
    let first = room.json(&[&["align", "--model", "tiny", "--output-dir", "a/first"], &SMALL[..]].concat());
    assert_eq!((&first["steps"], &first["reason"]), (&2.into(), &"finished".into()));
    assert_eq!(first["examples"]["kept"], 10);
    let names = [
        "adapter",
        "completions.jsonl",
        "config.toml",
        "events.out.tfevents",
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
    ];
    let mut found: Vec<String> = fs::read_dir(room.path("a/first"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        // An event file has the time in its name.
        .map(
            |name| if name.starts_with("events") { name[.."events.out.tfevents".len()].into() } else { name },
        )
        .collect();
    found.sort();
    assert_eq!(found, names);
    let summary: Value =
        serde_json::from_slice(&fs::read(room.path("a/first/summary.json")).unwrap()).unwrap();
    assert_eq!(summary, first);

    let metrics = lines(&room.path("a/first/metrics.jsonl"));
    let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 2);
    for step in steps {
        for name in STEP_METRICS {
            assert!(step[name].as_f64().is_some_and(f64::is_finite), "{name} in {step}");
        }
    }
    assert!(metrics[0]["eval_loss"].is_number(), "the first evaluation comes first");

    // Nine examples: one of the ten is held out.
    let samples = lines(&room.path("a/first/samples.jsonl"));
    assert_eq!(samples.len(), 18);
    for sample in &samples {
        assert!(sample["logp"].as_f64().unwrap() < 0.0);
        assert_eq!(sample["ids"].as_array().unwrap().len(), sample["num_tokens"].as_u64().unwrap() as usize);
    }

    // The same settings and the same anchors again give the same run, bit for bit.
    let again = [
        "align",
        "--config",
        "a/first/config.toml",
        "--samples-file",
        "a/first/samples.jsonl",
        "--output-dir",
        "second",
    ];
    let second = room.json(&again);
    assert_eq!(second["after"], first["after"]);
    assert_eq!(second["anchors"]["drawn"], 0, "all are in the file");
    let weights = |run: &str| fs::read(room.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(weights("a/first"), weights("second"));
    assert_eq!(samples, lines(&room.path("second/samples.jsonl")));

    // A file with too few anchors is filled up; one with a sample that the model could not have written is
    // refused.
    let text = fs::read_to_string(room.path("a/first/samples.jsonl")).unwrap();
    room.write("few.jsonl", text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>());
    let few = ["--samples-file", "few.jsonl", "--output-dir", "third"];
    let third = room.json(&[&["align", "--config", "a/first/config.toml"], &few[..]].concat());
    assert_eq!(third["anchors"]["drawn"], 1);
    assert_eq!(lines(&room.path("third/samples.jsonl")).len(), 18);
    let long: Vec<u32> = vec![20; 600];
    room.write("few.jsonl", text.replace("\"ids\":[", &format!("\"ids\":{long:?}, \"was\":[")));
    let parts = ["few.jsonl:1: prompt and sample: expected at most 512 tokens"];
    room.refuses(
        &[&["align", "--config", "a/first/config.toml"], &few[..], &["--overwrite"]].concat(),
        &parts,
    );

    // An adapter with a tensor for which the model has no layer would be applied only in part.
    let adapter = fs::read(room.path("a/first/adapter/adapter_model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&adapter).unwrap().tensors();
    let extra = "base_model.model.lm_head.lora_A.weight".to_string();
    tensors.push((extra.clone(), tensors[0].1.clone()));
    fs::create_dir(room.path("odd")).unwrap();
    room.write("odd/adapter_model.safetensors", safetensors::serialize(tensors, None).unwrap());
    fs::copy(room.path("a/first/adapter/adapter_config.json"), room.path("odd/adapter_config.json")).unwrap();
    let parts = ["odd: expected A and B matrices of the model's linear layers", &extra];
    room.refuses(&["generate", "--model", "tiny", "--adapter", "odd", "--prompt", "hi"], &parts);

    // An existing folder is refused without --overwrite and replaced with it; its adapter can start a run.
    room.refuses(&again, &["--output-dir", "second, which exists", "--overwrite"]);
    let more = ["--overwrite", "--adapter", "a/first/adapter", "--seed", "7", "--r", "16"];
    room.json(&[&again[..], &more].concat());
    assert_ne!(weights("second"), weights("a/first"));

    let answer =
        ["generate", "--model", "tiny", "--adapter", "a/first/adapter", "--prompt", "My printer is broken."];
    let figures = room.json(&[&answer[..], &["--temperature", "0", "--max-new-tokens", "6"]].concat());
    assert!(!figures["answers"][0]["completion"].as_str().unwrap().is_empty());
}

#[test]
fn a_full_run_writes_a_model_that_loads() {
    let room = Room::new();
    let full = [
        "align",
        "--model",
        "tiny",
        "--output-dir",
        "full",
        "--full",
        "--no-stop",
        "--learning-rate",
        "1e-4",
    ];
    let summary = room.json(&[&full[..], &SMALL].concat());
    assert_eq!(summary["trainable_parameters"], 1_115_520);
    assert!(!room.path("full/adapter").exists());
    let score = |model: &str, name: &str| {
        room.json(&[
            "score",
            "--model",
            model,
            "--data",
            "flagged.jsonl",
            "--max-samples",
            "4",
            "--output",
            name,
        ]);
        lines(&room.path(name))[0]["logp"].as_f64().unwrap()
    };
    let (before, after) = (score("tiny", "before.jsonl"), score("full/model", "after.jsonl"));
    assert!((before - after).abs() > 1e-3, "training has changed nothing: {before} {after}");
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("full/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float32");
}

#[test]
fn selftest_gives_a_verdict() {
    let room = Room::new();
    let figures = room.json(&["selftest", "--quick"]);
    assert_eq!((&figures["exact"], &figures["failed"]), (&true.into(), &0.into()), "{figures}");
    assert!(figures["checks"].as_array().unwrap().iter().any(|check| check["name"] == "model_gradients"));
    let output = room.run(&["selftest", "--quick", "--quiet"]);
    let (stdout, stderr) = texts(&output);
    assert!(stdout.starts_with("All ") && stdout.contains(" checks passed on "), "{stdout}");
    assert_eq!(stderr, "");
}
