//! `aweigh demo`: a whole run.

use std::fs;

use serde_json::Value;

use super::room::Room;

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
    // The run's folder has its data and metrics, and its model answers a prompt.
    assert!(room.path("demo/train.jsonl.gz").is_file() && room.path("demo/metrics.jsonl").is_file());
    let generate = ["generate", "--model", "demo/model", "--prompt", "Where is my order?", "--json"];
    let answer = room.json(&generate[..generate.len() - 1]);
    assert!(answer["answers"][0]["completion"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}
