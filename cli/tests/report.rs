//! `aweigh report`.

use std::fs;

use super::room::{Room, SHORT};

#[test]
fn a_report_shows_runs_and_evaluations() {
    let room = Room::with_pairs();
    let run = ["--train", "train.jsonl", "--max-steps", "4", "--eval-steps", "2", "--num-completions", "2"];
    let short = ["--max-samples", "20", "--num-samples", "2", "--max-new-tokens", "8"];
    let align = [&["align", "--model", "tiny", "--output-dir", "run"], &run[..], &short].concat();
    room.json(&align);
    let lines = fs::read_to_string(room.path("run/completions.jsonl")).unwrap();
    // Two held-out and two ordinary prompts, before the first step, after the second and after the fourth.
    assert_eq!(lines.lines().count(), 4 * 3, "{lines}");
    room.json(
        &[
            &["eval", "base", "run", "--model", "tiny", "--data", "held.jsonl", "--output", "e.json"],
            &SHORT[..],
        ]
        .concat(),
    );
    let found = room.json(&["report", "run", "--eval", "e.json"]);
    let page = fs::read_to_string(room.path("report.html")).unwrap();
    assert_eq!(found["bytes"], page.len());
    for part in [
        "Rewards",
        "Answers through the run",
        "(ordinary)",
        "step 4",
        "win rate by listed words",
        "config.toml",
        "<svg",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    assert!(!page.contains("http") && !page.contains("<script"), "a page that asks for nothing");
    room.refuses(&["report", "run"], &["--output", "report.html"]);
    room.refuses(&["report", "model", "--output", "x.html"], &["model", "a run's folder"]);
    room.refuses(
        &["report", "--eval", "train.jsonl", "--output", "x.html"],
        &["train.jsonl", "an evaluation"],
    );
}
