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
    // No end token belongs to an answer that was cut.
    let cut = |answer: &&serde_json::Value| answer["completion"][0]["finish_reason"] == "length";
    let not_ended = answers.iter().filter(|answer| answer["ended"] == false).count();
    assert_eq!(answers.iter().filter(cut).count(), not_ended);
    assert!(not_ended > 0, "no answer of 12 tokens was cut");
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

/// The rows that align trains on: a flagged answer of each prompt, and its others as anchors.
#[test]
fn unwanted_answers_become_training_rows() {
    let room = Room::new();
    let sample = ["sample", "--model", "tiny", "--data", "flagged.jsonl", "--num-samples", "4"];
    let more = ["--max-new-tokens", "12", "--max-samples", "6", "--output"];
    let of = |output: &'static str, rule: &[&'static str]| [&sample[..], &more, &[output], rule].concat();
    room.json(&of("all.jsonl", &[]));
    let rule = ["--unwanted", "match:^[a-m]"];
    let figures = room.json(&of("rows.jsonl", &rule));
    let unwanted = |text: &str| text.starts_with(|c: char| ('a'..='m').contains(&c.to_ascii_lowercase()));
    let text = |completion: &serde_json::Value| match completion.as_str() {
        Some(text) => text.to_owned(),
        None => completion[0]["content"].as_str().expect("a message").to_owned(),
    };
    let (all, rows) = (room.lines("all.jsonl"), room.lines("rows.jsonl"));
    assert_eq!(figures["flagged"], rows.len(), "{figures}");
    let mut expected = 0;
    for answers in all.chunks(4) {
        let texts: Vec<String> = answers.iter().map(|answer| text(&answer["completion"])).collect();
        let Some(first) = texts.iter().find(|text| unwanted(text)) else { continue };
        let row = &rows[expected];
        expected += 1;
        assert_eq!((text(&row["completion"]), &row["label"]), (first.clone(), &false.into()));
        assert_eq!((&row["prompt"], &row["line"]), (&answers[0]["prompt"], &answers[0]["line"]));
        let anchors: Vec<String> = row["anchors"].as_array().into_iter().flatten().map(&text).collect();
        let others = texts.iter().filter(|text| !unwanted(text) && !text.trim().is_empty());
        assert!(anchors.iter().eq(others), "{row}");
    }
    assert!(
        rows.len() == expected && (1..=6).contains(&expected) && rows.iter().any(|r| r["anchors"].is_array())
    );
    let plan = room.run(&["plan", "--model", "tiny", "--train", "rows.jsonl"]);
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));

    room.refuses(
        &of("none.jsonl", &["--unwanted", "match:no such words"]),
        &["--unwanted: expected an answer for which match:no such words holds, found none in 24"],
    );
    assert!(!room.path("none.jsonl").exists());
}
