//! Commands that have no file of their own here, through the real program to their end.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::room::{Room, texts};

fn lines(room: &Room, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(room.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_demo_shows_what_changed_and_leaves_a_run() {
    let room = Room::new();
    let figures = room.json(&["demo", "--max-steps", "2", "--output-dir", "demo"]);
    assert_eq!(figures["steps"], 2);
    for side in ["before", "after"] {
        let share = figures[side]["hostile_share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{share}");
    }
    assert!(figures["before"]["hostile_share"].as_f64() > Some(0.2), "{figures}");
    let [summary, kept] = ["summary.json", "demo.json"].map(|name| {
        serde_json::from_slice::<Value>(&fs::read(room.path("demo").join(name)).unwrap()).unwrap()
    });
    assert_eq!((&summary["steps"], &kept["after"]), (&figures["steps"], &figures["after"]));
    // Its settings repeat it, and its result answers.
    assert!(room.path("demo/train.jsonl.gz").is_file() && room.path("demo/metrics.jsonl").is_file());
    let generate = ["generate", "--model", "demo/model", "--prompt", "Where is my order?", "--json"];
    let answer = room.json(&generate[..generate.len() - 1]);
    assert!(answer["answers"][0]["completion"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}

#[test]
fn sampled_answers_are_scored_as_they_were_drawn() {
    let room = Room::new();
    let sample = ["sample", "--model", "tiny", "--data", "flagged.jsonl", "--max-samples", "3"];
    let more = ["--num-samples", "2", "--max-new-tokens", "12", "--output", "answers.jsonl"];
    let figures = room.json(&[&sample[..], &more[..]].concat());
    assert_eq!(figures["answers"], 6, "{figures}");
    let answers = lines(&room, "answers.jsonl");
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|answer| answer["ids"].as_array().is_some_and(|ids| ids.len() <= 12)));
    let score = ["score", "--model", "tiny", "--data", "answers.jsonl", "--output", "scored.jsonl"];
    let figures = room.json(&score);
    assert_eq!(figures["rows"], 6, "{figures}");
    let scored = lines(&room, "scored.jsonl");
    assert_eq!(scored.len(), 6);
    for (scored, answer) in scored.iter().zip(&answers) {
        assert_eq!(scored["prompt"], answer["prompt"]);
        assert!(scored["logp"].as_f64().is_some_and(|logp| logp < 0.0 && logp > -100.0), "{scored}");
    }
}

/// Ctrl-C writes a checkpoint; the judge that goes on from it is the one that was never stopped.
#[cfg(unix)]
#[test]
fn a_judge_goes_on_where_it_was_stopped() {
    let room = Room::new();
    let row = |i: usize| {
        let (answer, label) = if i.is_multiple_of(2) { ("You fool.", false) } else { ("Gladly.", true) };
        format!(r#"{{"prompt": "ask {i}", "completion": "{answer}", "label": {label}}}"#)
    };
    room.write("labelled.jsonl", (0..40).map(row).collect::<Vec<_>>().join("\n"));
    let train = ["judge", "train", "--model", "tiny", "--train", "labelled.jsonl", "--num-train-epochs", "6"];
    let into = |folder: &'static str| [&train[..], &["--output-dir", folder]].concat();
    room.json(&into("whole"));
    let mut child =
        room.process().args(into("cut")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let steps = || fs::read_to_string(room.path("cut/metrics.jsonl")).map_or(0, |text| text.lines().count());
    while steps() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let refused = room.run(&["judge", "train", "--resume", "cut", "--r", "8"]);
    assert_eq!(refused.status.code(), Some(2), "a judge goes on as it was begun");
    let (_, told) = texts(&room.run(&["judge", "train", "--resume", "cut"]));
    assert!(told.contains("going on after step "), "{told}");
    let weights =
        |folder: &str| fs::read(room.path(folder).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("cut") == weights("whole"), "the judges differ");
    let [cut, whole] = ["cut/judge.json", "whole/judge.json"].map(|name| fs::read(room.path(name)).unwrap());
    assert_eq!(cut, whole);
}
