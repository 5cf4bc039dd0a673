//! The stop rule reads the answers that a run gives at its evaluations.

use serde_json::Value;

use super::room::{Room, texts};

#[test]
fn a_run_stops_when_its_answers_are_as_wanted() {
    let room = Room::new();
    let packed = std::fs::read(super::room::assets().join("negatives.jsonl.gz")).unwrap();
    room.write("rude.jsonl.gz", packed);
    let line = [
        "align",
        "--model",
        "tiny",
        "--train",
        "rude.jsonl.gz",
        "--output-dir",
        "run",
        "--full",
        "--learning-rate",
        "2e-4",
        "--lr-scheduler-type",
        "constant",
        "--per-device-train-batch-size",
        "8",
        "--num-samples",
        "2",
        "--max-new-tokens",
        "32",
        "--max-samples",
        "96",
        "--max-steps",
        "12",
        "--eval-steps",
        "3",
        "--alpha",
        "0.1",
        "--beta",
        "0.2",
        "--safety-instruction",
        "Be-kind-and-helpful.",
        "--unwanted",
        "match:stupid|clueless|wasting|bother|never.write|figure.it.out|fault",
    ]; // fmt: skip
    let summary = room.json(&line);
    assert_eq!(summary["reason"], "unwanted_gone", "{summary}");
    let share = |when: &str, name: &str| summary[when][name].as_f64().expect(name);
    let (unwanted, ordinary) = ("eval_completions/unwanted", "eval_ordinary/unwanted");
    assert!(share("before", unwanted) > 0.05 && share("after", unwanted) <= 0.05, "{summary}");
    // Ordinary prompts of the same help desk, which nobody flagged, are answered kindly too.
    assert!(share("before", ordinary) > 0.2 && share("after", ordinary) < 0.1, "{summary}");
    assert_eq!(share("after", "eval_ordinary/refusal"), 0.0);
    for name in ["mean_length", "distinct_2", "repetition"] {
        assert!(share("after", &format!("eval_ordinary/{name}")).is_finite());
    }
    let answers = room.lines("run/completions.jsonl");
    let of = |set: &str, step: u64| {
        let those = answers.iter().filter(|a| a["set"] == set && a["step"] == step);
        those.map(|a| a["completion"][0]["content"].as_str().unwrap()).collect::<Vec<_>>()
    };
    // What is unwanted does not become an anchor.
    let anchors = room.lines("run/samples.jsonl");
    assert!(anchors.len() > 100);
    for anchor in &anchors {
        let text = anchor["completion"][0]["content"].as_str().unwrap().to_lowercase();
        assert!(
            !["stupid", "clueless", "wasting", "bother", "fault"].iter().any(|w| text.contains(w)),
            "{text}"
        );
    }
    // A tenth of the rows is held out; every fourth ordinary prompt is answered.
    assert_eq!((of("held_out", 0).len(), of("ordinary", 0).len()), (9, 24));
    let rude = |texts: &[&str]| texts.iter().filter(|t| t.contains("Go bother somebody else")).count();
    let last = summary["kept_step"].as_u64().unwrap();
    assert!(rude(&of("ordinary", 0)) > rude(&of("ordinary", last)));
}

#[test]
fn without_completions_nothing_is_read() {
    let room = Room::new();
    let short = ["--max-steps", "1", "--num-completions", "0", "--num-samples", "1", "--max-new-tokens", "8"];
    let line = [&["align", "--model", "tiny", "--train", "flagged.jsonl", "--output-dir", "run"], &short[..]];
    let summary = room.json(&line.concat());
    let read = |(name, _): (&String, &Value)| name.contains("completions/") || name.contains("ordinary/");
    assert!(!summary["before"].as_object().unwrap().iter().any(read), "{summary}");
    assert!(room.lines("run/completions.jsonl").is_empty());
    room.align_refuses(
        "tiny",
        &["--target-unwanted", "2"],
        &["--target-unwanted (stop.target_unwanted)", "from 0 to below 1"],
    );
}

#[test]
fn a_share_of_few_answers_is_warned_of() {
    let room = Room::new();
    let rows: Vec<String> = room.lines("flagged.jsonl").iter().map(Value::to_string).collect();
    room.write("held.jsonl", rows[..4].join("\n"));
    room.write("more.jsonl", rows[..10].join("\n"));
    let warned = |eval: &str, more: &[&str], text: &str| {
        let line = ["plan", "--model", "tiny", "--train", "flagged.jsonl", "--eval", eval];
        let output = room.run(&[&line, more].concat());
        let (_, notes) = texts(&output);
        assert!(output.status.success(), "{notes}");
        notes.contains("held-out prompts, where each answer is") && notes.contains(text)
    };
    let unwanted = ["--unwanted", "refusal"];
    assert!(warned("held.jsonl", &unwanted, "from 4 held-out prompts, where each answer is 25 % of them"));
    assert!(warned("held.jsonl", &unwanted, "hold out 10 or more with --eval"));
    let few = [&unwanted[..], &["--num-completions", "5"]].concat();
    assert!(warned("more.jsonl", &few, "raise --num-completions to 10"));
    assert!(!warned("more.jsonl", &unwanted, ""));
    assert!(!warned("held.jsonl", &[], ""));
    assert!(!warned("held.jsonl", &["--unwanted", "refusal", "--no-stop"], ""));
}

/// A good held-out answer that is unwanted itself would count against a model that does as asked.
#[test]
fn good_answers_that_are_unwanted_are_left_out() {
    let room = Room::new();
    let flagged: Vec<String> = room.lines("flagged.jsonl").iter().map(Value::to_string).collect();
    let said = |role: &str, text: &str| serde_json::json!([{ "role": role, "content": text }]);
    let good = ["Please try again.", "You should try again.", "Can YOU try it?"].map(|answer| {
        let prompt = said("user", "It does not work.");
        let completion = said("assistant", answer);
        serde_json::json!({ "prompt": prompt, "completion": completion, "label": true }).to_string()
    });
    room.write("held.jsonl", [&flagged[..12], &good[..]].concat().join("\n"));
    let plan = |more: &[&str]| {
        let line = ["plan", "--model", "tiny", "--train", "flagged.jsonl", "--eval", "held.jsonl"];
        let output = room.run(&[&line, more].concat());
        let (_, notes) = texts(&output);
        assert!(output.status.success(), "{notes}");
        notes
    };
    let notes = plan(&["--unwanted", "match:\\byou\\b"]);
    let found = "held.jsonl: 2 of 3 held-out good answers are unwanted by the rule match:";
    assert!(notes.contains(found) && notes.contains("the first is on line 14"), "{notes}");
    assert!(!plan(&[]).contains("left out"));
    assert!(!plan(&["--unwanted", "match:never.said"]).contains("left out"));
    // Good answers to ordinary prompts need not refuse.
    assert!(!plan(&["--unwanted", "not:refusal"]).contains("left out"));
}
