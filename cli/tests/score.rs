//! `aweigh score`.

use super::room::{Room, texts};

#[test]
fn every_answer_gets_its_log_prob() {
    let room = Room::with_pairs();
    let line = ["score", "--model", "model", "--data", "held.jsonl", "--max-samples", "3"];
    let (stdout, stderr) = texts(&room.run(&line));
    room.json(&[&line[..], &["--output", "scored.jsonl"]].concat());
    let rows = room.lines("scored.jsonl");
    let printed: Vec<serde_json::Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, rows, "{stderr}");
    // A chosen and a rejected answer for each row, in its order; the model prefers the first.
    assert_eq!(rows.len(), 6, "{stdout}");
    for pair in rows.chunks(2) {
        let [chosen, rejected] = [0, 1].map(|i| pair[i]["logp"].as_f64().unwrap());
        assert!(chosen < 0.0 && rejected < 0.0, "{pair:?}");
    }
}
