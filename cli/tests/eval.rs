//! `aweigh eval`: candidates compared by every kind of meter.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::room::{Room, SHORT};

#[cfg(unix)]
#[test]
fn candidates_are_compared_by_every_kind_of_meter() {
    let room = Room::with_pairs();
    room.write("words.txt", "printer\n");
    let meters = [
        "--meter",
        "tiny-hostile",
        "--meter",
        "tiny-topic",
        "--meter",
        "lexicon:words.txt",
        "--meter",
        "match:[aeiou]",
        "--meter",
        "not:match:[aeiou]",
    ];
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
            "change of the perplexity of good answers" => {
                assert_eq!((a, &b["value"]), (&Value::Null, &0.0.into()))
            }
            _ => assert_eq!(a, b, "{figure}"),
        }
    }
    let matched = ["match:[aeiou]", "not:match:[aeiou]"].map(|name| value(name, 0).unwrap());
    assert_eq!(matched[0] + matched[1], 1.0);
    // The same model twice: no meter names a winner.
    let comparisons = found["sets"][0]["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 6);
    assert!(comparisons.iter().all(|c| c["verdict"] == "undecided" && c["candidate"] == "same"));
    assert!(value("command", 0).unwrap() > 100.0 && value("perplexity of good answers", 0).unwrap() > 1.0);
    assert_eq!(value("KL from the base, nats per token", 1), Some(0.0));
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
    let foreign = ["eval", "base", "--model", "tiny", "--data", "other.jsonl", "--meter", "tiny-hostile"];
    room.refuses(&foreign, &["a prompt of the help desk"]);
}

/// A server that grades every answer 7/10. Returns its URL, and the requests that it gets.
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
    let room = Room::with_pairs();
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

/// In CI a limit decides: exit code 1 above it, with the figures all the same.
#[test]
fn limits_decide_the_exit_code() {
    let room = Room::with_pairs();
    let line = ["eval", "--model", "tiny", "--data", "held.jsonl", "--meter", "tiny-hostile", "--json"];
    let ended = |more: &[&str]| {
        let output = room.run(&[&line[..], &SHORT, more].concat());
        let stdout = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), stdout, String::from_utf8(output.stderr).unwrap())
    };
    let (code, stdout, stderr) = ended(&["--fail-above", "hostile=-1", "base"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error: above the limit: held: hostile of base is "), "{stderr}");
    let figures: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(figures["candidates"], serde_json::json!(["base"]));
    // With two candidates the first is only compared with: --fail-above is about the second.
    let (code, _, stderr) = ended(&["--fail-above", "hostile=-1", "base", "again=tiny"]);
    assert!(code == Some(1) && !stderr.contains("of base"), "{stderr}");
    assert_eq!(ended(&["--fail-above", "hostile=1", "base", "again=tiny"]).0, Some(0));
    // Weights that say nothing: off topic beyond any interval.
    let mut weights = room.read("model/model.safetensors");
    let half = weights.len() / 2;
    weights[half..].fill(0);
    room.write("model/model.safetensors", weights);
    let compare = |candidates: &[&str]| {
        let meter =
            ["eval", "--model", "tiny", "--data", "held.jsonl", "--meter", "tiny-topic", "--fail-if-worse"];
        let output = room.run(&[&meter[..], &["--max-new-tokens", "48"], candidates].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = compare(&["base", "broken=model"]);
    assert!(code == Some(1) && stderr.contains("off topic: broken is higher than base by "), "{stderr}");
    assert_eq!(compare(&["broken=model", "base"]).0, Some(0));
    let (code, stderr) = compare(&["base"]);
    assert!(code == Some(2) && stderr.contains("expected two or more candidates"), "{stderr}");
    let (code, stderr) = compare(&["--max-samples", "6", "base", "broken=model"]);
    assert!(code == Some(2) && stderr.contains("expected 10 prompts or more, found 6 in held"), "{stderr}");
    let (code, _, stderr) = ended(&["--fail-above", "rude=0.1", "base"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--fail-above: expected one of the meters: hostile, found rude"), "{stderr}");
    assert_eq!(ended(&["--fail-above", "hostile", "base"]).0, Some(2));
}
