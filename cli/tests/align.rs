//! `aweigh align`: its data, its folder, its epochs and interruption while anchors are sampled.
//! resume.rs tests `--resume`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::room::{Room, SMALL, interrupt, is_wine, texts};

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
        &["flagged.jsonl:3: expected one JSON object, found invalid JSON", "fix this line"],
    );
    room.write("flagged.jsonl", "{\"prompt\": \"a\", \"completion\": 3, \"label\": false}\n");
    room.align_refuses("tiny", &[], &["flagged.jsonl:1: completion: expected a string"]);
    room.write("flagged.jsonl", "{\"question\": \"a\", \"reply\": \"b\"}\n");
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

/// The figures that every step logs.
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

    let metrics = room.lines("a/first/metrics.jsonl");
    let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 2);
    for step in steps {
        for name in STEP_METRICS {
            assert!(step[name].as_f64().is_some_and(f64::is_finite), "{name} in {step}");
        }
    }
    assert!(metrics[0]["eval_loss"].is_number(), "the first evaluation comes first");

    // Nine examples: one of the ten is held out.
    let samples = room.lines("a/first/samples.jsonl");
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
    assert_eq!(samples, room.lines("second/samples.jsonl"));

    // A file with too few anchors is filled up; one with a sample that the model could not have written is
    // refused.
    let text = fs::read_to_string(room.path("a/first/samples.jsonl")).unwrap();
    room.write("few.jsonl", text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>());
    let few = ["--samples-file", "few.jsonl", "--output-dir", "third"];
    let third = room.json(&[&["align", "--config", "a/first/config.toml"], &few[..]].concat());
    assert_eq!(third["anchors"]["drawn"], 1);
    assert_eq!(room.lines("third/samples.jsonl").len(), 18);
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
        room.lines(name)[0]["logp"].as_f64().unwrap()
    };
    let (before, after) = (score("tiny", "before.jsonl"), score("full/model", "after.jsonl"));
    assert!((before - after).abs() > 1e-3, "training has changed nothing: {before} {after}");
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("full/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float32");
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
    assert!(said.contains("same.jsonl:1: the chosen and the rejected answer are the same in 1 of"), "{said}");
    assert!(said.contains("same.jsonl:3: repeats an earlier row"), "{said}");
    assert!(said.contains("same.jsonl:2: flags an answer that line 4 calls good"), "{said}");
    let said = told(&["--train", "flagged.jsonl", "--method", "kto"]);
    assert!(
        said.contains("kto learns from good and flagged answers, but all answers here are flagged"),
        "{said}"
    );
    room.write("empty.jsonl", [pair("b", "c"), pair("", "d"), pair("e", "f")].join("\n"));
    let said = told(&["--train", "empty.jsonl", "--method", "dpo"]);
    assert!(said.contains("empty.jsonl:2: left out because the prompt or an answer is empty"), "{said}");
}

/// Writes `rows` as the training rows.
fn write_rows(room: &Room, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    room.write("flagged.jsonl", lines.join("\n"));
}

#[test]
fn a_row_brings_its_own_anchors() {
    let room = Room::new();
    let mut rows = room.lines("flagged.jsonl");
    let answers = ["Please send the order number.", "We will look into it."];
    let message = |text: &str| json!([{"role": "assistant", "content": text}]);
    for row in &mut rows[..2] {
        row["anchors"] = answers.map(message).into();
    }
    rows[1]["anchors"].as_array_mut().unwrap().truncate(1);
    write_rows(&room, &rows);
    let summary = room.json(&[&["align", "--model", "tiny", "--output-dir", "first"], &SMALL[..]].concat());
    // Nine training rows of two anchors each: two rows bring theirs, also if these are fewer.
    assert_eq!(summary["anchors"]["drawn"], 14);
    let samples = room.lines("first/samples.jsonl");
    let of = |line: u64| -> Vec<&str> {
        let own = samples.iter().filter(|sample| sample["line"] == line);
        own.map(|sample| sample["completion"][0]["content"].as_str().unwrap()).collect()
    };
    assert_eq!((of(1), of(2)), (answers.to_vec(), answers[..1].to_vec()));
    assert!(samples.iter().filter(|sample| sample["line"] == 1).all(|sample| sample["ended"] == true));

    let refused = |anchors: Value, words: &[&str]| {
        let mut rows = rows.clone();
        rows[3]["anchors"] = anchors;
        write_rows(&room, &rows);
        room.align_refuses("tiny", &[], words);
    };
    refused(json!("one"), &["flagged.jsonl:4: anchors: expected a list of answers, found a string"]);
    refused(json!(["one"]), &["flagged.jsonl:4: anchors[0]: expected prompt and answers of one kind"]);
    refused(
        json!([message("a"), message(" ")]),
        &["flagged.jsonl:4: anchors[1]: expected text, found nothing"],
    );
}

#[test]
fn anchors_are_filtered_and_shown_what_is_wanted() {
    let room = Room::new();
    fn align<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["align", "--model", "tiny", "--overwrite"], &SMALL[..], more].concat()
    }
    let to = ["--output-dir", "first"];
    let filter = ["--anchor-filter", "not:match:^[a-m]"];
    let out = room.run(&align(&[&to[..], &filter].concat()));
    assert!(out.status.success());
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(told.contains(" sampled answers (") && told.contains("not:match:^[a-m]"), "{told}");
    // The progress counts anchors, not the samples that were refused.
    let (_, progress) = told.rsplit_once("sampling anchors ").expect("progress");
    let (done, total) = progress.split_once(' ').unwrap().0.split_once('/').unwrap();
    let [done, total] = [done, total].map(|text| text.parse::<usize>().unwrap());
    assert!(0 < done && done <= total, "{told}");
    let summary: Value = serde_json::from_slice(&room.read("first/summary.json")).unwrap();
    let count = |name: &str| summary["anchors"][name].as_u64().unwrap();
    assert!(count("filtered") > 0 && count("drawn") > 18);
    let samples = room.lines("first/samples.jsonl");
    let kept = count("drawn") - count("empty") - count("filtered");
    assert_eq!(samples.len() as u64, kept);
    for sample in &samples {
        let text = sample["completion"][0]["content"].as_str().unwrap();
        assert!(!text.starts_with(|c: char| ('a'..='m').contains(&c.to_ascii_lowercase())), "{text}");
    }
    // The settings are kept, and the same filter on the same samples keeps them all.
    room.json(&[
        "align",
        "--config",
        "first/config.toml",
        "--samples-file",
        "first/samples.jsonl",
        "--output-dir",
        "again",
    ]);
    let sampled = |folder: &str| room.lines(&format!("{folder}/samples.jsonl"));
    let ids = |all: Vec<Value>| all.iter().map(|s| (s["line"].clone(), s["ids"].clone())).collect::<Vec<_>>();
    let (first, second) = (ids(samples), ids(sampled("again")));
    assert!(first.iter().all(|one| second.contains(one)));

    // Worked examples change what is sampled, and not what is scored.
    let examples = json!([
        {"role": "user", "content": "My parcel is late."},
        {"role": "assistant", "content": "Sorry about that. We will find out where it is."},
    ]);
    room.write("examples.json", examples.to_string());
    room.json(&align(&["--anchor-examples", "examples.json", "--output-dir", "shown"]));
    room.json(&align(&["--output-dir", "bare"]));
    assert_ne!(ids(sampled("shown")), ids(sampled("bare")));

    let refused = |flags: &[&str], words: &[&str]| room.align_refuses("tiny", flags, words);
    let rule = ["--anchor-filter", "match:no such words"];
    refused(
        &[&SMALL[..8], &rule].concat(),
        &["--anchor-filter: expected a sampled answer for which match:no such words holds"],
    );
    refused(&["--anchor-examples", "missing.json"], &["--anchor-examples: expected a file at missing.json"]);
    room.write("examples.json", "[]");
    refused(
        &["--anchor-examples", "examples.json"],
        &["examples.json: messages: expected text, found nothing"],
    );
    room.write("flagged.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": false}\n");
    refused(
        &["--anchor-examples", "refusals"],
        &["flagged.jsonl:1", "expected a list of messages, which examples can precede"],
    );
}

#[test]
fn ordinary_answers_are_retained() {
    let room = Room::new();
    let align = |more: &[&'static str]| {
        let folder = ["align", "--model", "tiny", "--overwrite", "--output-dir", "kept"];
        room.json(&[&folder, &SMALL[..], more].concat())
    };
    align(&["--retain", "kl", "--method", "npo", "--warmup-steps", "0"]);
    let steps = |name: &str| -> Vec<f64> {
        room.lines("kept/metrics.jsonl").iter().filter_map(|line| line[name].as_f64()).collect()
    };
    assert_eq!(steps("retain_loss"), steps("kl/retain"));
    assert!(steps("retain_loss").len() == 2 && steps("retain_loss")[1] > 0.0);
    // Prompts of one's own, as plain text and as conversations, with answers that are not read.
    room.write("own.jsonl", "{\"prompt\": \"Where is it?\", \"completion\": \"There.\"}\n");
    align(&["--retain", "sft", "--retain-data", "own.jsonl", "--retain-weight", "0.5"]);
    assert!(steps("retain_loss")[0] > 0.1);
    let config = fs::read_to_string(room.path("kept/config.toml")).unwrap();
    assert!(config.contains("[retain]\nform = \"sft\"\nweight = 0.5\n"), "{config}");
    room.align_refuses(
        "tiny",
        &["--retain-weight", "0"],
        &["--retain-weight (retain.weight): expected a number"],
    );
    let missing = ["--retain", "kl", "--retain-data", "none.jsonl"];
    room.align_refuses("tiny", &missing, &["--retain-data: expected a file at none.jsonl"]);
}

#[test]
fn alpha_and_beta_are_measured() {
    let room = Room::new();
    let run = [&["align", "--model", "tiny"], &SMALL[..]].concat();
    let instructed = ["--beta", "auto", "--safety-instruction", "Be kind.", "--output-dir", "first"];
    let out = room.run(&[&run[..], &instructed].concat());
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && told.contains("nats likelier with the instruction"), "{told}");
    let summary: Value = serde_json::from_slice(&room.read("first/summary.json")).unwrap();
    let [alpha, beta] = ["alpha", "beta"].map(|name| summary["constants"][name].as_f64().unwrap());
    assert!((0.1..=1.0).contains(&beta) && (alpha - beta.powf(1.5)).abs() < 1e-12, "{alpha} {beta}");
    assert!(fs::read_to_string(room.path("first/config.toml")).unwrap().contains("beta = \"auto\""));
    // Anchors on the bare prompt, the default, are the model's own: nothing is between them.
    let own = room.json(&[&run[..], &["--output-dir", "bare"]].concat());
    assert_eq!(own["constants"], json!({"alpha": 1.0, "beta": 1.0}));
    room.align_refuses(
        "tiny",
        &["--method", "npo", "--beta", "auto"],
        &["--beta (method.beta): expected a number for this method, found auto"],
    );
}

/// Ctrl-C in the first wave keeps the prompts that have all their anchors; the resumed run's result is
/// bit-identical.
#[test]
fn an_interrupt_keeps_the_anchors_of_the_first_wave() {
    if is_wine() {
        return;
    }
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
    // After --save-minutes it saves the anchors that it has, while it samples more.
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
    interrupt(&child, "INT");
    let output = child.wait_with_output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("stopped with the anchors sampled so far; resume with: aweigh align --resume cut"),
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
