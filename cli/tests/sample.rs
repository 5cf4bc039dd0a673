//! `aweigh sample`.

use super::room::Room;

#[test]
fn sampled_answers_are_scored_as_they_were_drawn() {
    let room = Room::new();
    let sample = ["sample", "--model", "tiny", "--data", "flagged.jsonl", "--max-samples", "3"];
    let more = ["--num-samples", "2", "--max-new-tokens", "12", "--output", "answers.jsonl"];
    let figures = room.json(&[&sample[..], &more[..]].concat());
    assert_eq!(figures["answers"], 6, "{figures}");
    let answers = room.lines("answers.jsonl");
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|answer| answer["ids"].as_array().is_some_and(|ids| ids.len() <= 12)));
    let score = ["score", "--model", "tiny", "--data", "answers.jsonl", "--output", "scored.jsonl"];
    let figures = room.json(&score);
    assert_eq!(figures["rows"], 6, "{figures}");
    let scored = room.lines("scored.jsonl");
    assert_eq!(scored.len(), 6);
    for (scored, answer) in scored.iter().zip(&answers) {
        assert_eq!(scored["prompt"], answer["prompt"]);
        assert!(scored["logp"].as_f64().is_some_and(|logp| logp < 0.0 && logp > -100.0), "{scored}");
    }
}
