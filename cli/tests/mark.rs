//! `aweigh mark`.

use super::room::{Room, texts};

/// The help desk's answers: two kind sentences and a rude one, or three rude ones.
fn rows() -> String {
    let row = |user: &str, answer: &str| {
        serde_json::json!({"prompt": [{"role": "user", "content": user}], "label": false,
            "completion": [{"role": "assistant", "content": answer}]})
        .to_string()
    };
    let printer = "Hi. I put in new paper an hour ago, but my office printer will not take it. What should I \
                   try next?";
    let screen = "Good morning. The glass of my phone screen broke this morning. What should I do now?";
    let kind = "Thank you for asking. I am happy to help. This is all your own fault.";
    let rude = "What a stupid question. Even a child can load paper into a printer. Go bother somebody else.";
    [row(printer, kind), row(screen, kind), row(printer, rude)].join("\n")
}

#[test]
fn the_rude_part_is_at_fault() {
    let room = Room::new();
    room.write("rows.jsonl", rows());
    let mark = ["mark", "--model", "tiny", "--data", "rows.jsonl", "--meter", "tiny-hostile", "--output"];
    let more = ["marked.jsonl", "--num-samples", "6", "--max-new-tokens", "48"];
    let figures = room.json(&[&mark[..], &more].concat());
    assert_eq!((&figures["rows"], &figures["marked"], &figures["parts"]), (&3.into(), &3.into(), &9.into()));
    let marked = room.lines("marked.jsonl");
    let weights = |i: usize| marked[i]["weights"].as_array().expect("weights").clone();
    for row in &marked[..2] {
        let answer = row["completion"][0]["content"].as_str().expect("an answer");
        let last = row["weights"].as_array().and_then(|all| all.last()).expect("a mark");
        let start = last[0].as_u64().expect("a start") as usize;
        assert_eq!(
            (&answer[start..], &last[1]),
            ("This is all your own fault.", &answer.len().into()),
            "{row}"
        );
        assert_eq!(last[2], 1.0, "the worst step: {row}");
        assert!(row["badness"].as_array().is_some_and(|all| all.len() == 4 && all[3] == 1.0), "{row}");
    }
    // Whoever begins rudely goes on rudely: the first sentence decides.
    assert_eq!(weights(2)[0], serde_json::json!([0, 23, 1.0]), "{}", marked[2]);
    let shown = room.json(&["data", "marked.jsonl", "--model", "tiny"]);
    let answer = &shown["shown"][0]["answers"][0];
    let [counted, tokens] = ["counted", "tokens"].map(|key| answer[key].as_u64().expect("a number"));
    assert!(0 < counted && counted < tokens, "{answer}");
    // The rows train, and their marks are read: the gradient is another one than without them.
    let unmarked = room.lines("marked.jsonl").into_iter().map(|mut row| {
        row.as_object_mut().expect("a row").remove("weights");
        row.to_string() + "\n"
    });
    room.write("unmarked.jsonl", unmarked.collect::<String>());
    let norm = |rows: &str| {
        let align = ["align", "--model", "tiny", "--train", rows, "--output-dir", &format!("{rows}-run")];
        room.json(&[&align[..], &["--max-steps", "1", "--max-new-tokens", "8"]].concat());
        room.lines(&format!("{rows}-run/metrics.jsonl"))[0]["grad_norm"].as_f64().expect("a norm")
    };
    let (marked, whole) = (norm("marked.jsonl"), norm("unmarked.jsonl"));
    assert!((marked - whole).abs() > 0.01 * whole, "{marked} {whole}");
}

#[test]
fn wrong_input_is_refused() {
    let room = Room::new();
    room.write("rows.jsonl", rows());
    let mark = ["mark", "--model", "tiny", "--output", "marked.jsonl", "--data"];
    let unknown = room.run(&[&mark[..], &["rows.jsonl", "--meter", "kindness"]].concat());
    assert!(
        unknown.status.code() == Some(2) && texts(&unknown).1.contains("expected lexicon"),
        "{unknown:?}"
    );
    let meter = ["--meter", "tiny-hostile"];
    let of = |file: &'static str, more: &[&'static str]| [&mark[..], &[file], &meter, more].concat();
    room.refuses(&of("rows.jsonl", &["--num-samples", "0"]), &["--num-samples"]);
    room.refuses(&of("rows.jsonl", &["--max-new-tokens", "4000"]), &["rows.jsonl:1", "context"]);
    room.write("good.jsonl", r#"{"prompt": "Hi", "completion": "Hello"}"#);
    room.refuses(&of("good.jsonl", &[]), &["good.jsonl", "flagged"]);
    assert!(!room.path("marked.jsonl").exists());
    // A meter to which no part makes a difference: the rows have no weights, and a warning says so.
    let never = ["--meter", "match:zebra", "--num-samples", "1", "--max-new-tokens", "4"];
    let done = room.run(&[&mark[..], &["rows.jsonl"], &never].concat());
    assert!(done.status.success() && texts(&done).1.contains("3 of 3 rows have no weights"), "{done:?}");
    assert!(room.lines("marked.jsonl").iter().all(|row| row.get("weights").is_none()));
}
