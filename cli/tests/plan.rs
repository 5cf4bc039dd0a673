//! `aweigh plan`: planned memory against used, and runs with a memory limit.

use serde_json::Value;

use super::room::{Room, texts};

/// A short run: two steps of two groups.
const RUN: [&str; 14] = [
    "--model",
    "tiny",
    "--train",
    "pairs.jsonl",
    "--max-steps",
    "2",
    "--max-samples",
    "12",
    "--num-samples",
    "3",
    "--max-new-tokens",
    "12",
    "--learning-rate",
    "1e-5",
];

/// Settings that need different buffers.
const SETTINGS: [&[&str]; 27] = [
    &["--max-num-seqs", "8", "--per-device-train-batch-size", "8"],
    &["--max-num-seqs", "8", "--per-device-train-batch-size", "8", "--recompute", "mlp"],
    &["--max-num-seqs", "8", "--per-device-train-batch-size", "8", "--recompute", "full"],
    &["--full"],
    &["--full", "--optim", "adamw_8bit"],
    &["--full", "--recompute", "full", "--method", "sft"],
    &["--method", "dpo", "--no-stop"],
    &["--max-tokens-per-batch", "90", "--gradient-accumulation-steps", "3"],
    &[
        "--reference-negative",
        "ema:0.9",
        "--online-start-step",
        "1",
        "--refresh-every",
        "1",
        "--per-device-train-batch-size",
        "2",
    ],
    &["--reference-positive", "copy:1", "--online-start-step", "0", "--lora-dropout", "0.1"],
    &["--quantize", "q8", "--max-num-seqs", "2"],
    &["--quantize", "nf4", "--target-modules", "all-linear", "--r", "4"],
    &["--offload", "--recompute", "mlp"],
    &["--memory", "9MB", "--fit"],
    &["--method", "kto", "--per-device-train-batch-size", "3"],
    &["--method", "npo"],
    &["--retain", "kl", "--retain-batch-size", "3"],
    &["--retain", "sft", "--retain-batch-size", "5", "--retain-max-new-tokens", "2"],
    &["--retain", "sft", "--retain-max-new-tokens", "20"],
    &["--beta", "auto", "--safety-instruction", "be kind, be honest, and help with the printer"],
    &["--method", "sft", "--retain", "sft", "--max-tokens-per-batch", "60"],
    &["--method", "simpo", "--full"],
    &["--negatives", "hard", "--balance", "2"],
    &["--negatives", "mcns", "--per-device-train-batch-size", "2"],
    &["--negatives", "paired", "--method", "d2o"],
    &["--method", "ga", "--negatives", "mcns"],
    &[
        "--negatives",
        "generated",
        "--harmful-instruction",
        "be rude, be loud, and never help with the printer",
        "--anchors",
        "meter:match:fire",
    ],
];

fn room() -> Room {
    let room = Room::new();
    let line = |i: usize| {
        let [prompt, chosen, rejected] =
            [3, 2, 5].map(|words| "printer ".repeat(1 + (i * words) % 7) + "broken");
        format!("{{\"prompt\": \"{prompt} {i}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n")
    };
    room.write("pairs.jsonl", (0..12).map(line).collect::<String>());
    room
}

#[test]
fn a_run_holds_what_was_planned() {
    let room = room();
    let mut peaks = Vec::new();
    for (i, settings) in SETTINGS.into_iter().enumerate() {
        let plan = room.json(&[&["plan"], &RUN[..], settings].concat());
        let folder = format!("run{i}");
        let run = room.json(&[&["align", "--output-dir", &folder], &RUN[..], settings].concat());
        let [planned, expected, held] =
            [&plan["peak"], &run["memory_planned"], &run["memory_peak"]].map(|bytes| bytes.as_u64().unwrap());
        assert_eq!(planned, expected, "{settings:?}: `aweigh plan` and the run's own plan");
        assert!(held <= planned, "{settings:?}: {held} bytes, {planned} planned");
        // Answers under the harmful instruction may be longer than the rows' own, and here none is flagged.
        let least = if settings.contains(&"generated") { 90 } else { 95 };
        assert!(held * 100 >= planned * least, "{settings:?}: {held} bytes, {planned} planned");
        peaks.push(held);
    }
    assert!(
        peaks[2] < peaks[1] && peaks[1] < peaks[0] && peaks[4] < peaks[3] && peaks[13] <= 9_000_000,
        "{peaks:?}"
    );
}

/// The plan is right if the data has fewer examples than a step, or an epoch's last step is smaller.
#[test]
fn a_step_may_have_an_example_twice() {
    let room = room();
    let run =
        ["--model", "tiny", "--train", "pairs.jsonl", "--max-steps", "4", "--no-stop", "--num-samples", "2"];
    let moving = ["--max-new-tokens", "8", "--reference-negative", "ema:0.9", "--shuffle=false"];
    for (i, more) in
        [&["--max-samples", "1"][..], &["--max-samples", "3"], &["--max-samples", "1", "--method", "dpo"]]
            .into_iter()
            .enumerate()
    {
        let folder = format!("run{i}");
        let figures = room.json(&[&["align", "--output-dir", &folder], &run[..], &moving, more].concat());
        let [planned, held] = ["memory_planned", "memory_peak"].map(|key| figures[key].as_u64().unwrap());
        assert!(held <= planned && held * 100 >= planned * 95, "{more:?}: {held} bytes, {planned} planned");
    }
}

#[test]
fn offloaded_weights_change_no_result() {
    let room = room();
    let generate =
        ["generate", "--model", "tiny", "--prompt", "My printer is broken.", "--max-new-tokens", "12"];
    let answer = |flags: &[&str]| {
        let figures = room.json(&[&generate[..], flags].concat());
        (figures["answers"][0]["completion"].clone(), figures["memory_peak_bytes"].as_u64().unwrap())
    };
    let ((expected, whole), (found, less)) = (answer(&[]), answer(&["--offload"]));
    assert_eq!(found, expected);
    // Four of five blocks of 181,504 parameters, in f16.
    assert!(whole - less > 4 * 2 * 170_000, "{whole} bytes, and {less} offloaded");
    let losses = |folder: &str, flags: &[&str]| -> Vec<Value> {
        room.json(&[&["align", "--output-dir", folder], &RUN[..], flags].concat());
        let text = std::fs::read_to_string(room.path(folder).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["grad_norm"].is_number()).map(|line| line["grad_norm"].clone()).collect()
    };
    let expected = losses("whole", &[]);
    assert_eq!(losses("less", &["--offload", "--recompute", "full"]), expected);
    assert_eq!(expected.len(), 2);
    room.refuses(
        &[&["align", "--output-dir", "out", "--offload", "--full"], &RUN[..]].concat(),
        &["model.offload"],
    );
}

#[test]
fn presets_are_below_flags() {
    let room = room();
    let peak = |more: &[&str]| room.json(&[&["plan", "--model", "tiny"], more].concat())["peak"].clone();
    assert_eq!(peak(&["--preset", "habit"]), peak(&[]));
    let paper = ["--preset", "paper"];
    assert_ne!(peak(&paper), peak(&[]));
    let of_habit = ["--num-samples", "2", "--per-device-train-batch-size", "4", "--safety-instruction="];
    assert_eq!(peak(&[&paper[..], &of_habit].concat()), peak(&[]));
    let unknown = room.run(&["plan", "--model", "tiny", "--preset", "kind"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(texts(&unknown).1.contains("habit, refuse, paper"));
}

#[test]
fn a_plan_says_what_would_help() {
    let room = room();
    let figures = room.json(&["plan", "--model", "tiny"]);
    assert_eq!(figures["assumed_lengths"], true);
    let phases: Vec<&Value> =
        figures["plan"]["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
    assert_eq!(phases, ["sampling", "scoring", "evaluation", "answering", "training"]);
    let savings = figures["savings"].as_array().unwrap();
    let of = |flag: &str| {
        let found =
            savings.iter().find(|saving| saving["flag"] == flag).unwrap_or_else(|| panic!("{savings:?}"));
        found["peak"].as_u64().unwrap()
    };
    assert!(
        of("--recompute full") < of("--recompute mlp")
            && of("--recompute mlp") < figures["peak"].as_u64().unwrap()
    );

    let (text, notes) = texts(&room.run(&[&["plan"], &RUN[..]].concat()));
    assert!(text.starts_with("memory ") && text.contains("\npeak GPU memory "), "{text}");
    // The remarks on the rows are those of a run.
    assert!(notes.contains("warning: pairs.jsonl:1: the prompt is a string"), "{notes}");
}

#[test]
fn a_run_over_its_budget_does_not_begin() {
    let room = room();
    let align = |flags: &[&str], parts: &[&str]| {
        room.refuses(&[&["align", "--output-dir", "out"], &RUN[..], flags].concat(), parts);
    };
    let parts = ["--memory 4MB: expected a run that fits, found ", "MiB in ", "set --fit, or one of: --"];
    align(&["--memory", "4MB"], &parts);
    align(&["--memory", "1MB", "--fit"], &["with the smallest settings tried", "allow more memory"]);
    align(&["--fit"], &["gpu.fit", "--memory 4GB"]);
    align(&["--full", "--quantize", "nf4"], &["model.quantize", "train an adapter"]);
    align(&["--max-num-seqs", "0"], &["from 1 to 192"]);
    let output = room.run(&[&["align", "--output-dir", "out", "--memory", "much"], &RUN[..]].concat());
    assert!(texts(&output).1.contains("expected a number and a unit, as in 4GB"), "{output:?}");
}
