//! Files as other programs and people make them: they are read as intended, or refused with the real reason.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::room::{Room, texts};

/// The tensors of a safetensors file: name, type, shape, bytes.
type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(room: &Room, name: &str) -> Tensors {
    let bytes = fs::read(room.path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (&str, TensorView)| {
        (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    file.iter().map(one).collect()
}

fn write(room: &Room, name: &str, all: &Tensors) {
    let views = all.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    room.write(name, safetensors::serialize(views, None).unwrap());
}

const WEIGHTS: &str = "model/model.safetensors";

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
        let found = format!("weights that {method} has quantised (model.layers.0.mlp.up_proj");
        let parts = [found.as_str(), "--quantize nf4"];
        room.refuses(&["inspect", "--model", "model"], &parts);
        room.refuses(&["score", "--model", "model", "--data", "answers.jsonl"], &parts);
    }
}

/// Masks and frequencies of old checkpoints are kept beside the weights; the user is told of tensors that
/// nothing reads.
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
    let expected = "1 tensors have no place in a model of this configuration and are left out, \
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
    room.write("chat.jsonl", r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#);
    let score = ["score", "--model", "m.gguf", "--data", "chat.jsonl"];
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("model/tokenizer.json")).unwrap()).unwrap();
    if config["model"]["byte_fallback"] != true {
        room.write("m.gguf", replaced("gpt-2", "gpt-9"));
        room.refuses(
            &score,
            &["found \"gpt-9\"\n  what to do: take the model's Hugging Face directory instead"],
        );
    }
    room.write("m.gguf", replaced("tokenizer.chat_template", "tokenizer.chat_templatX"));
    let parts = [
        "(m.gguf): expected a chat template",
        "no tokenizer.chat_template in its metadata",
        "--chat-template FILE",
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
    assert!(told.contains("keys that are not known, and have no effect here: supernova_size"), "{told}");
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
        told.contains("it was made for org/SmolLM2-135M; on qwen2-0.5b it may do something else"),
        "{told}"
    );
    room.edit(file, "\"supernova_size\": 3", "\"alora_invocation_tokens\": [4, 7]");
    for command in [&score[..], &["export", "--model", "model", "--adapter", "run/adapter", "--output", "e"]]
    {
        room.refuses(command, &["an unsupported \"alora_invocation_tokens\", which is switched on"]);
    }
    room.refuses(
        &["score", "--model", "model", "--data", "answers.jsonl", "--adapter", "run"],
        &["give the folder adapter in it"],
    );
    fs::remove_dir_all(room.path("run")).unwrap();
    fs::create_dir(room.path("mlx")).unwrap();
    room.write("mlx/adapters.safetensors", "x");
    room.refuses(
        &["score", "--model", "model", "--data", "answers.jsonl", "--adapter", "mlx"],
        &["MLX's format"],
    );
}

/// Five examples are batches of four and one, and the epoch ends there.
#[test]
fn an_epoch_ends_where_the_data_does() {
    let room = Room::new();
    let rows: String = fs::read_to_string(room.path("flagged.jsonl"))
        .unwrap()
        .lines()
        .take(5)
        .map(|l| format!("{l}\n"))
        .collect();
    room.write("five.jsonl", rows);
    let line = [
        "align",
        "--model",
        "model",
        "--train",
        "five.jsonl",
        "--output-dir",
        "out",
        "--method",
        "npo",
        "--no-stop",
        "-q",
        "--per-device-train-batch-size",
        "2",
        "--gradient-accumulation-steps",
        "2",
        "--num-train-epochs",
        "2",
        "--num-completions",
        "0",
    ]; // fmt: skip
    let done = room.run(&line);
    assert!(done.status.success(), "{}", texts(&done).1);
    let metrics = fs::read_to_string(room.path("out/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let epochs: Vec<f64> =
        lines.iter().map(|line| (line["epoch"].as_f64().unwrap() * 1e4).round() / 1e4).collect();
    assert_eq!(epochs, [0.6667, 1.0, 1.6667, 2.0]);
    let tokens = |i: usize| lines[i]["num_tokens"].as_f64().unwrap();
    assert_eq!(tokens(3), 2.0 * tokens(1), "every row once an epoch");
}

#[test]
fn odd_rows_are_told_before_the_run() {
    let room = Room::new();
    let pair = |chosen: &str, rejected: &str| {
        json!({"prompt": "a", "chosen": chosen, "rejected": rejected}).to_string()
    };
    room.write("same.jsonl", [pair("b", "b"), pair("c", "d"), pair("c", "d"), pair("d", "c")].join("\n"));
    let told = |more: &[&str]| {
        let line = [
            "align",
            "--model",
            "model",
            "--output-dir",
            "out",
            "--overwrite",
            "--max-steps",
            "1",
            "--no-stop",
            "-q",
        ];
        let done = room.run(&[&line[..], more].concat());
        let (stdout, stderr) = texts(&done);
        assert!(done.status.success(), "{stderr}");
        assert!(!stdout.contains("anchors: 0"), "{stdout}");
        stderr
    };
    let said = told(&["--train", "same.jsonl", "--method", "dpo"]);
    assert!(said.contains("same.jsonl:1: the chosen answer is the rejected one, in 1 of 4 rows"), "{said}");
    assert!(said.contains("same.jsonl:3: repeats an earlier row"), "{said}");
    assert!(said.contains("same.jsonl:2: flags an answer that line 4 calls good"), "{said}");
    let said = told(&["--train", "flagged.jsonl", "--method", "kto"]);
    assert!(
        said.contains("kto learns from good answers and flagged ones, and all of these are flagged"),
        "{said}"
    );
    room.write("empty.jsonl", [pair("b", "c"), pair("", "d"), pair("e", "f")].join("\n"));
    let said = told(&["--train", "empty.jsonl", "--method", "dpo"]);
    assert!(said.contains("empty.jsonl:2: left out, as the prompt or an answer is empty: 1 rows"), "{said}");
}

/// All commands put the instruction before the first question, and say so once.
#[test]
fn a_template_without_a_system_role() {
    let room = Room::new();
    room.write(
        "t.jinja",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ \
         m.content }}{% endfor %}{% if add_generation_prompt %} {% endif %}",
    );
    room.write("ask.jsonl", r#"{"prompt": [{"role": "user", "content": "a"}]}"#);
    let flag = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}], "label": false}"#;
    room.write("flag.jsonl", flag);
    let template = ["--model", "model", "--chat-template", "t.jinja", "--max-new-tokens", "4"];
    let lines: [&[&str]; 3] = [
        &["generate", "--system", "Be kind.", "--prompt", "a"],
        &["sample", "--safety-instruction", "Be kind.", "--data", "ask.jsonl", "--output", "o.jsonl"],
        &[
            "align",
            "--train",
            "flag.jsonl",
            "--output-dir",
            "out",
            "--num-samples",
            "1",
            "--max-steps",
            "1",
            "--no-stop",
        ],
    ];
    for line in lines {
        let done = room.run(&[line, &template].concat());
        let (_, stderr) = texts(&done);
        assert!(done.status.success(), "{stderr}");
        let note = "the chat template takes no system message: its text stands before the first question";
        assert_eq!(stderr.matches(note).count(), 1, "{stderr}");
    }
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let room = Room::new();
    let error = |line: &[&str]| -> Value {
        let done = room.run(line);
        assert_eq!(done.status.code(), Some(2));
        serde_json::from_str::<Value>(&texts(&done).0).unwrap()["error"].clone()
    };
    let found = error(&["score", "--model", "none", "--data", "a.jsonl", "--json", "--output", "b.jsonl"]);
    assert!(found["place"].is_string() && found["fix"].is_string() && found["exit_code"] == 2, "{found}");
    assert!(
        error(&["score", "--no-such-flag", "--json"])["message"].as_str().unwrap().contains("--no-such-flag")
    );
}

#[test]
fn words_of_the_command_line() {
    let room = Room::new();
    room.align_refuses("tiny", &["--learning-rate", "-3e-5"], &["expected a number above 0, found -0.00003"]);
    room.align_refuses(
        "SmolLM2-135M-Instruct",
        &[],
        &["a model of the Hugging Face Hub is named owner/name"],
    );
    let missing = "--train (data.train), --output-dir (output.output_dir): expected a JSONL file of \
                   examples, a folder for the run";
    room.refuses(&["align", "--model", "tiny"], &[missing]);
    // Mesa prints an error if there is no desktop session; it must not appear.
    let mut plan = room.command();
    plan.args(["plan", "--model", "tiny", "--train", "flagged.jsonl", "-q"]).env_remove("XDG_RUNTIME_DIR");
    let plan = plan.output().unwrap();
    assert!(plan.status.success() && plan.stderr.is_empty(), "{}", texts(&plan).1);
    // A result that cannot be saved is refused before it is measured.
    room.write("taken", "");
    let started = Instant::now();
    let tune = room
        .command()
        .args(["devices", "--tune", "--model", "tiny"])
        .env("AWEIGH_CACHE_DIR", room.path("taken"))
        .output();
    let tune = tune.unwrap();
    assert_eq!(tune.status.code(), Some(2));
    assert!(texts(&tune).1.contains("what to do: "), "{}", texts(&tune).1);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// Ctrl-C in the first wave keeps the prompts that have their anchors; the resumed run gives the same bits.
#[cfg(unix)]
#[test]
fn an_interrupt_keeps_the_anchors_of_the_first_wave() {
    let room = Room::new();
    // Each prompt has many samples, so that some waves belong to one prompt.
    let line = |folder: &'static str| {
        [
            "align",
            "--model",
            "model",
            "--train",
            "flagged.jsonl",
            "--output-dir",
            folder,
            "--num-samples",
            "24",
            "--max-new-tokens",
            "24",
            "--max-num-seqs",
            "24",
            "--max-steps",
            "2",
            "--no-stop",
            "--num-completions",
            "0",
        ]
    }; // fmt: skip
    assert!(room.run(&line("whole")).status.success());
    let mut cut = room.process();
    cut.args(line("cut")).args(["--save-minutes", "0.001"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = cut.spawn().unwrap();
    let begun = Instant::now();
    // After --save-minutes it saves the anchors that it has, while it draws more.
    let kept = || {
        let entries = fs::read_dir(room.path("cut")).into_iter().flatten();
        let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.any(|name| name.starts_with("anchors-"))
    };
    while !kept() {
        assert!(
            child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(120),
            "no anchors were kept"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("stopped with the anchors that were drawn; aweigh align --resume cut goes on"),
        "{stderr}"
    );
    let resumed = room.run(&["align", "--resume", "cut"]);
    assert!(resumed.status.success(), "{}", texts(&resumed).1);
    let adapter =
        |folder: &str| fs::read(room.path(folder).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("cut") == adapter("whole"), "the adapters differ");
    // The message for a finished run says how to continue from its result.
    room.refuses(
        &["align", "--resume", "cut", "--max-steps", "9"],
        &["a finished run", "--adapter cut/adapter --max-steps N"],
    );
}
