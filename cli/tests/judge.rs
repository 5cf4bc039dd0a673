//! `aweigh judge`: judges are trained, resumed, and used.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::room::{Room, interrupt, is_wine, texts};

#[test]
fn a_judge_is_trained_and_judges() {
    let room = Room::with_pairs();
    let data = ["--train", "train.jsonl", "--eval", "held.jsonl", "--per-device-train-batch-size", "16"];
    let rate = ["--learning-rate", "2e-3", "--num-train-epochs", "2"];
    let found = room
        .json(&[&["judge", "train", "--model", "tiny", "--output-dir", "judge"], &data[..], &rate].concat());
    assert_eq!((&found["train_answers"], &found["held_out"]["judge"]["count"]), (&120.into(), &24.into()));
    let auroc = found["held_out"]["judge"]["auroc"]["value"].as_f64().unwrap();
    assert!(auroc > 0.9, "{found}");
    // The head is stored with the adapter, as PEFT does it.
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("judge/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"][1]), (&"SEQ_CLS".into(), &"score".into()));
    // Loaded again from its files, the judge gives the same figures.
    let judge = ["judge", "score", "--judge", "judge", "--data", "held.jsonl", "--output", "scored.jsonl"];
    let again = room.json(&judge);
    assert_eq!(again["labelled"], found["held_out"]);
    let scored = fs::read_to_string(room.path("scored.jsonl")).unwrap();
    let rows: Vec<Value> = scored.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mean = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).sum::<f64>() / rows.len() as f64;
    assert!(rows.len() == 12 && mean("rejected_harm") > mean("chosen_harm") + 0.2, "{scored}");
    // A judge cannot generate answers, and an adapter for answers is not a judge.
    let adapter = ["--model", "tiny", "--adapter", "judge/adapter"];
    room.refuses(&[&["generate"], &adapter[..], &["--prompt", "x"]].concat(), &["score.weight"]);
    room.refuses(&[&["export"], &adapter[..], &["--output", "merged"]].concat(), &["a judge's head"]);
    room.refuses(
        &["judge", "train", "--model", "tiny", "--train", "flagged.jsonl", "--output-dir", "j2"],
        &["flagged.jsonl", "fine"],
    );
}

#[test]
fn a_judge_trained_whole_is_a_model_of_its_own() {
    let room = Room::with_pairs();
    let data = ["--train", "train.jsonl", "--eval", "held.jsonl", "--max-steps", "2", "--full"];
    let found =
        room.json(&[&["judge", "train", "--model", "tiny", "--output-dir", "judge"], &data[..]].concat());
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("judge/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    let again = room.json(&["judge", "score", "--judge", "judge", "--data", "held.jsonl"]);
    assert_eq!(again["labelled"], found["held_out"]);
    room.refuses(&["generate", "--model", "judge/model", "--prompt", "x"], &["a language model", "a judge"]);
}

/// Ctrl-C writes a checkpoint; the judge that is resumed from it is bit-identical to one that was never
/// stopped.
#[test]
fn a_judge_goes_on_where_it_was_stopped() {
    if is_wine() {
        return;
    }
    let room = Room::new();
    let row = |i: usize| {
        let (answer, label) = if i.is_multiple_of(2) { ("You fool.", false) } else { ("Gladly.", true) };
        format!(r#"{{"prompt": "ask {i}", "completion": "{answer}", "label": {label}}}"#)
    };
    room.write("labelled.jsonl", (0..40).map(row).collect::<Vec<_>>().join("\n"));
    room.refuses(&["judge", "train", "--resume", "cut"], &["--resume: expected", "found no folder at cut"]);
    let train = ["judge", "train", "--model", "tiny", "--train", "labelled.jsonl", "--num-train-epochs", "6"];
    let into = |folder: &'static str| [&train[..], &["--output-dir", folder]].concat();
    room.json(&into("whole"));
    let mut child =
        room.process().args(into("cut")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let steps = || fs::read_to_string(room.path("cut/metrics.jsonl")).map_or(0, |text| text.lines().count());
    while steps() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    interrupt(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let refused = room.run(&["judge", "train", "--resume", "cut", "--r", "8"]);
    assert_eq!(refused.status.code(), Some(2), "a judge is resumed with its original settings");
    let (_, told) = texts(&room.run(&["judge", "train", "--resume", "cut"]));
    assert!(told.contains("resuming after step "), "{told}");
    let weights =
        |folder: &str| fs::read(room.path(folder).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("cut") == weights("whole"), "the judges differ");
    let whole = room.read("whole/judge.json");
    assert_eq!(room.read("cut/judge.json"), whole);
    // Cut off after the run and before the measurement: only that is done.
    fs::remove_file(room.path("cut/judge.json")).unwrap();
    let figures = room.json(&["judge", "train", "--resume", "cut"]);
    assert_eq!(
        figures["kept_step"],
        serde_json::from_slice::<serde_json::Value>(&whole).unwrap()["kept_step"]
    );
    assert_eq!(room.read("cut/judge.json"), whole);
}
