//! Judges, meters, comparisons and reports, with the real program.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use serde_json::Value;

use super::room::{Room, assets};

/// A room with a few of the embedded held-out pairs.
fn room() -> Room {
    let room = Room::new();
    let packed = fs::File::open(assets().join("heldout.jsonl.gz")).unwrap();
    let text = std::io::read_to_string(GzDecoder::new(packed)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    room.write("train.jsonl", lines[..60].join("\n"));
    room.write("held.jsonl", lines[60..72].join("\n"));
    room
}

const SHORT: [&str; 6] = ["--max-new-tokens", "8", "--seed", "3", "--max-samples", "6"];

#[test]
fn a_judge_is_trained_and_judges() {
    let room = room();
    let data = ["--train", "train.jsonl", "--eval", "held.jsonl", "--per-device-train-batch-size", "16"];
    let rate = ["--learning-rate", "2e-3", "--num-train-epochs", "2"];
    let found = room
        .json(&[&["judge", "train", "--model", "tiny", "--output-dir", "judge"], &data[..], &rate].concat());
    assert_eq!((&found["train_answers"], &found["held_out"]["judge"]["count"]), (&120.into(), &24.into()));
    let auroc = found["held_out"]["judge"]["auroc"]["value"].as_f64().unwrap();
    assert!(auroc > 0.9, "{found}");
    // The head is stored with the adapter, as PEFT does it.
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("judge/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"][1]), (&"SEQ_CLS".into(), &"score".into()));
    // Loaded again from its files, the judge gives the same figures.
    let judge = ["judge", "score", "--judge", "judge", "--data", "held.jsonl", "--output", "scored.jsonl"];
    let again = room.json(&judge);
    assert_eq!(again["labelled"], found["held_out"]);
    let scored = fs::read_to_string(room.path("scored.jsonl")).unwrap();
    let rows: Vec<Value> = scored.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mean = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).sum::<f64>() / rows.len() as f64;
    assert!(rows.len() == 12 && mean("rejected_harm") > mean("chosen_harm") + 0.2, "{scored}");
    // A judge cannot generate answers, and an adapter for answers is not a judge.
    let adapter = ["--model", "tiny", "--adapter", "judge/adapter"];
    room.refuses(&[&["generate"], &adapter[..], &["--prompt", "x"]].concat(), &["score.weight"]);
    room.refuses(&[&["export"], &adapter[..], &["--output", "merged"]].concat(), &["a judge's head"]);
    room.refuses(
        &["judge", "train", "--model", "tiny", "--train", "flagged.jsonl", "--output-dir", "j2"],
        &["flagged.jsonl", "fine"],
    );
}

#[test]
fn a_judge_trained_whole_is_a_model_of_its_own() {
    let room = room();
    let data = ["--train", "train.jsonl", "--eval", "held.jsonl", "--max-steps", "2", "--full"];
    let found =
        room.json(&[&["judge", "train", "--model", "tiny", "--output-dir", "judge"], &data[..]].concat());
    let config: Value =
        serde_json::from_slice(&fs::read(room.path("judge/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    let again = room.json(&["judge", "score", "--judge", "judge", "--data", "held.jsonl"]);
    assert_eq!(again["labelled"], found["held_out"]);
    room.refuses(&["generate", "--model", "judge/model", "--prompt", "x"], &["a language model", "a judge"]);
}

#[cfg(unix)]
#[test]
fn candidates_are_compared_by_every_kind_of_meter() {
    let room = room();
    room.write("words.txt", "printer\n");
    let meters = ["--meter", "helpdesk", "--meter", "helpdesk-topic", "--meter", "lexicon:words.txt"];
    let command = ["--meter", "command:while read -r line; do echo ${#line}; done"];
    let data = ["--data", "held=held.jsonl", "--output", "eval.json"];
    let whole =
        [&["eval", "base", "same=model", "--model", "tiny"], &data[..], &meters, &command, &SHORT].concat();
    let found = room.json(&whole);
    assert_eq!(found["candidates"], serde_json::json!(["base", "same"]));
    let figures = found["sets"][0]["figures"].as_array().unwrap();
    let value = |name: &str, i: usize| {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        figure.unwrap_or_else(|| panic!("no {name}"))["values"][i]["value"].as_f64()
    };
    // Two names for one model: the answers are the same, so every figure is equal and every prompt is a tie.
    for figure in figures {
        let [a, b] = [0, 1].map(|i| &figure["values"][i]);
        match figure["name"].as_str().unwrap() {
            name if name.starts_with("win rate") => assert_eq!((a, &b["value"]), (&Value::Null, &0.5.into())),
            _ => assert_eq!(a, b, "{figure}"),
        }
    }
    assert!(value("command", 0).unwrap() > 100.0 && value("perplexity of good answers", 0).unwrap() > 1.0);
    assert_eq!(value("KL from the base, nats a token", 1), Some(0.0));
    let kept: Value = serde_json::from_slice(&fs::read(room.path("eval.json")).unwrap()).unwrap();
    assert_eq!(kept, found);
    room.refuses(&whole, &["--output", "eval.json"]);
    let other = [&["eval", "base", "--model", "tiny", "--data", "held.jsonl"], &SHORT[..]].concat();
    room.refuses(&[&other[..], &["--meter", "command:echo 1"]].concat(), &["6 scores", "1 scores"]);
    room.refuses(
        &[&other[..], &["--meter", "lexicon", "--meter", "lexicon:words.txt"]].concat(),
        &["listed words", "twice"],
    );
    room.refuses(&[&other[..], &["base"]].concat(), &["CANDIDATE", "twice"]);
    room.refuses(&[&other[..], &["--meter", "http:localhost:1/v1"]].concat(), &["--meter-model"]);
    room.refuses(&["eval", "no-such-model", "--model", "tiny", "--data", "held.jsonl"], &["no-such-model"]);
    room.write("other.jsonl", "{\"prompt\": \"What is two and two?\"}\n");
    let foreign = ["eval", "base", "--model", "tiny", "--data", "other.jsonl", "--meter", "helpdesk"];
    room.refuses(&foreign, &["a prompt of the help desk"]);
}

/// A grader that answers every request with a harm of 7, and keeps the requests.
fn grader() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            kept.lock().unwrap().push(format!("{head}\n{}", String::from_utf8(body).unwrap()));
            let reply = r#"{"choices":[{"message":{"role":"assistant","content":" 7/10"}}]}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: \
                 close\r\n\r\n{reply}",
                reply.len()
            );
        }
    });
    (address, asked)
}

#[test]
fn a_model_behind_an_endpoint_grades() {
    let room = room();
    let (address, asked) = grader();
    let meter = format!("http:{address}");
    let data = ["--data", "held.jsonl", "--meter", &meter, "--meter-model", "small", "--json"];
    let arguments = [&["eval", "base", "--model", "tiny"], &data[..], &SHORT].concat();
    let output = room.command().env("OPENAI_API_KEY", "secret-key").args(arguments).output().unwrap();
    let (stdout, stderr) = super::room::texts(&output);
    assert!(output.status.success(), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["sets"][0]["figures"][0]["name"], "graded harm");
    let grade = found["sets"][0]["figures"][0]["values"][0]["value"].as_f64().unwrap();
    assert!((grade - 0.7).abs() < 1e-9, "{grade}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 6);
    for part in ["POST /v1/chat/completions", "Bearer secret-key", "\"model\":\"small\"", "\"temperature\":0"]
    {
        assert!(asked[0].contains(part), "{part}: {}", asked[0]);
    }
    assert!(!stdout.contains("secret-key") && !stderr.contains("secret-key"));
}

#[test]
fn a_report_shows_runs_and_evaluations() {
    let room = room();
    let run = ["--train", "train.jsonl", "--max-steps", "4", "--eval-steps", "2", "--num-completions", "2"];
    let short = ["--max-samples", "20", "--num-samples", "2", "--max-new-tokens", "8"];
    let align = [&["align", "--model", "tiny", "--output-dir", "run"], &run[..], &short].concat();
    room.json(&align);
    let lines = fs::read_to_string(room.path("run/completions.jsonl")).unwrap();
    // Completions before the first step, after the second and after the fourth.
    assert_eq!(lines.lines().count(), 2 * 3, "{lines}");
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
    for part in
        ["Rewards", "Answers through the run", "step 4", "win rate by listed words", "config.toml", "<svg"]
    {
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
