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
    assert_eq!(rows.len(), 3, "{stdout}");
    for row in rows {
        let [chosen, rejected] = ["chosen_logp", "rejected_logp"].map(|key| row[key].as_f64().unwrap());
        assert!(chosen < 0.0 && rejected < 0.0 && chosen != rejected, "{row}");
        assert!(row["chosen_num_tokens"].as_u64().unwrap() > 5, "{row}");
    }
}
