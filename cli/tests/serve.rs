//! `aweigh serve`: the protocol, who may ask, adapters that come and go, and clients that leave.

use std::io::Read;
use std::net::TcpStream;

use serde_json::{Value, json};

use super::room::Room;
use super::server::Server;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const QUESTION: &str = "My printer is broken.";

fn ask(more: &Value) -> Value {
    let mut all =
        json!({ "messages": [{ "role": "user", "content": QUESTION }], "temperature": 0, "max_tokens": 12 });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

fn content(answer: &Value, choice: usize) -> &str {
    answer["choices"][choice]["message"]["content"].as_str().unwrap()
}

/// An adapter whose answers differ from the base model's.
fn train_adapter(room: &Room) {
    let data =
        ["--train", "flagged.jsonl", "--output-dir", "run", "--num-samples", "2", "--max-new-tokens", "8"];
    let steps = ["--max-steps", "3", "--learning-rate", "0.02", "--no-stop"];
    room.json(&[&["align", "--model", "tiny"], &data[..], &steps].concat());
}

#[test]
fn a_server_answers_as_the_other_commands_do() {
    let room = Room::new();
    let server = Server::of_tiny(&room, &["--max-num-seqs", "4"]);
    assert_eq!(server.models, ["tiny"]);
    let answer = server.ok(CHAT, &ask(&json!({ "model": "tiny", "logprobs": true, "top_logprobs": 2 })));
    assert_eq!(answer["object"], "chat.completion");
    let line =
        ["generate", "--model", "tiny", "--prompt", QUESTION, "--temperature", "0", "--max-new-tokens", "12"];
    let generated = room.json(&line);
    let generated = &generated["answers"][0];
    assert_eq!(content(&answer, 0), generated["completion"].as_str().unwrap());
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], generated["num_tokens"]);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
    let ended = generated["ended"].as_bool().unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], if ended { "stop" } else { "length" });

    // The likeliest tokens of a greedy answer are its own.
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = told.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text.trim(), content(&answer, 0).trim());
    let greedy = told.iter().all(|token| {
        let top = token["top_logprobs"].as_array().unwrap();
        top.len() == 2 && top[0]["token"] == token["token"] && top[0]["logprob"] == token["logprob"]
    });
    assert!(greedy, "{told:?}");

    // A stream has the same text, and says how it ended and what it took.
    let events = server.events(CHAT, &ask(&json!({ "stream_options": { "include_usage": true } })));
    let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), content(&answer, 0));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, counts] = &events[..] else { panic!("{events:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], answer["choices"][0]["finish_reason"]);
    assert_eq!(counts["usage"]["completion_tokens"], usage["completion_tokens"]);
    assert!(counts["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{counts}");

    // The stream's log-probs are those of the whole answer, also where a piece of text is held back.
    let whole = content(&answer, 0);
    let held: String = whole.chars().take(1).chain(['#']).collect();
    let events = server.events(CHAT, &ask(&json!({ "logprobs": true, "top_logprobs": 2, "stop": held })));
    let streamed = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), told);

    // The same seed gives the same answers, alone and among others; several answers differ.
    let drawn = json!({ "temperature": 1, "seed": 5, "n": 3 });
    let three = server.ok(CHAT, &ask(&drawn));
    let all: Vec<&str> = (0..3).map(|i| content(&three, i)).collect();
    assert!(all[0] != all[1] || all[1] != all[2], "{all:?}");
    let counts = &three["usage"];
    assert!(counts["prompt_tokens_details"]["cached_tokens"].as_u64() < counts["prompt_tokens"].as_u64());
    let first = server.ok(CHAT, &ask(&json!({ "temperature": 1, "seed": 5 })));
    assert_eq!(content(&first, 0), all[0]);
    let line =
        ["generate", "--model", "tiny", "--prompt", QUESTION, "--temperature", "1", "--top-p", "1", "--seed"];
    let generated = room.json(&[&line[..], &["5", "--max-new-tokens", "12"]].concat());
    assert_eq!(generated["answers"][0]["completion"], content(&first, 0));

    // A stop sequence is not part of the answer.
    let stop: String = whole.chars().skip(4).take(3).collect();
    let cut = server.ok(CHAT, &ask(&json!({ "stop": [stop, "never"], "logprobs": true })));
    assert_eq!(content(&cut, 0), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");

    // A text is continued, as text or as tokens.
    let line = [
        "generate",
        "--model",
        "tiny",
        "--raw",
        "--prompt",
        "The ",
        "--temperature",
        "0",
        "--max-new-tokens",
        "6",
    ];
    let generated = room.json(&line);
    let body = json!({ "prompt": "The ", "temperature": 0, "max_tokens": 6, "logprobs": 3 });
    let text = server.ok(TEXT, &body);
    assert_eq!(text["choices"][0]["text"], generated["answers"][0]["completion"]);
    let told = &text["choices"][0]["logprobs"];
    assert_eq!(told["tokens"].as_array().unwrap().len(), told["token_logprobs"].as_array().unwrap().len());
    assert_eq!(told["text_offset"][0], 0);
    let two = server.ok(TEXT, &json!({ "prompt": ["The ", "A "], "temperature": 0, "max_tokens": 6 }));
    assert_eq!(two["choices"][0]["text"], text["choices"][0]["text"]);
    assert_eq!(two["choices"][1]["index"], 1);
    let events = server.events(TEXT, &body);
    let pieces: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(pieces, text["choices"][0]["text"].as_str().unwrap());
}

/// The log-probs of an answer's tokens, and of the end of the turn after them, add up to what `score` gives.
#[test]
fn log_probs_are_those_of_score() {
    let room = Room::new();
    let server = Server::of_tiny(&room, &["--max-num-seqs", "2"]);
    let answer = server.ok(CHAT, &ask(&json!({ "max_tokens": 200, "logprobs": true })));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let row = json!({
        "prompt": [{ "role": "user", "content": QUESTION }],
        "completion": [{ "role": "assistant", "content": content(&answer, 0) }],
    });
    room.write("answers.jsonl", row.to_string());
    // The end of the turn is no part of an answer: what is the likeliest after all of it?
    let shown = room.json(&["data", "answers.jsonl", "--model", "tiny"])["shown"][0]["prompt"].clone();
    let whole = format!("{}{}", shown.as_str().unwrap(), content(&answer, 0));
    let after = json!({ "prompt": whole, "max_tokens": 1, "temperature": 100, "seed": 1, "logprobs": 20 });
    let after = server.ok(TEXT, &after);
    let end = after["choices"][0]["logprobs"]["top_logprobs"][0]["<|im_end|>"].as_f64();
    let end = end.unwrap_or_else(|| panic!("{after}"));
    room.json(&["score", "--model", "tiny", "--data", "answers.jsonl", "--output", "scored.jsonl"]);
    let scored = room.lines("scored.jsonl")[0].clone();
    assert_eq!(scored["num_tokens"].as_u64().unwrap() as usize, told.len() + 1);
    let sum: f64 = told.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    let logp = scored["logp"].as_f64().unwrap();
    assert!((logp - sum - end).abs() < 1e-4 * (told.len() + 1) as f64, "{logp} {sum} {end}");
}

#[test]
fn wrong_requests_get_the_protocols_errors() {
    let room = Room::new();
    let server = Server::of_tiny(&room, &["--max-num-seqs", "2", "--max-model-len", "100"]);
    let many = "my printer is broken and ".repeat(60);
    let long = json!({ "messages": [{ "role": "user", "content": many }] });
    for (path, body, status, code, part) in [
        (CHAT, ask(&json!({ "model": "gpt-4" })), 404, "model_not_found", "there is no \"gpt-4\""),
        (CHAT, ask(&json!({ "temperature": "hot" })), 400, "", "the body: expected a JSON request"),
        (CHAT, ask(&json!({ "tools": [{}] })), 400, "unsupported_parameter", "tools"),
        (CHAT, ask(&json!({ "n": 3 })), 400, "", "n: expected 1 to 2 answers"),
        (CHAT, ask(&json!({ "max_tokens": 90 })), 400, "context_length_exceeded", "and 90 for the answer"),
        (CHAT, long, 400, "context_length_exceeded", "1 to 100 tokens"),
        (CHAT, json!({ "messages": [] }), 400, "", "at least one message"),
        (CHAT, json!({}), 400, "", "missing field `messages`"),
        (TEXT, json!({ "prompt": "" }), 400, "context_length_exceeded", "found 0 tokens"),
        (TEXT, json!({ "prompt": [99_999], "max_tokens": 2, "stream": true }), 400, "", "vocab_size"),
        (
            TEXT,
            json!({ "prompt": [[1], [1], [1]], "n": 12_297_829_382_473_034_411_u64 }),
            400,
            "",
            "n: expected",
        ),
        (TEXT, json!({ "prompt": "a", "logprobs": 21 }), 400, "", "logprobs: expected 0 to 20"),
        (TEXT, json!({ "prompt": "a", "echo": true }), 400, "unsupported_parameter", "echo"),
        ("/v1/embeddings", json!({}), 404, "", "no such path"),
        ("/v1/models", json!({}), 405, "", "does not take this method"),
        ("/v1/load_lora_adapter", json!({ "lora_name": "a", "lora_path": "/etc" }), 403, "", "--adapter-dir"),
        ("/v1/unload_lora_adapter", json!({ "lora_name": "tiny" }), 403, "", "--adapter-dir"),
    ] {
        let (found, answer) = server.post(path, &body);
        let error = &answer["error"];
        assert_eq!(found, status, "{path} {body}: {answer}");
        assert_eq!(error["code"].as_str().unwrap_or(""), code, "{path} {body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(part), "{path} {body}: {answer}");
        assert!(error["type"].as_str().unwrap().ends_with("_error"), "{answer}");
    }
    assert_eq!(server.raw("POST", CHAT, &[], "{\"messages\": [").0, 400);
    assert_eq!(server.raw("POST", CHAT, &[], &" ".repeat(9 << 20)).0, 413);
    // A stream tells what is wrong with the request before it begins.
    let (status, answer) = server.post(CHAT, &ask(&json!({ "model": "gpt-4", "stream": true })));
    assert_eq!((status, answer["error"]["param"].as_str()), (404, Some("model")));
    // Foreign pages and names are refused.
    let body = ask(&json!({})).to_string();
    let refused = |headers: &[&str]| {
        let (status, text) = server.raw("POST", CHAT, headers, &body);
        assert_eq!(status, 403, "{headers:?}: {text}");
    };
    refused(&["Origin: http://evil.example"]);
    refused(&["Host: evil.example"]);
    refused(&["Sec-Fetch-Site: cross-site"]);
    let own = format!("Origin: http://{}", server.address);
    assert_eq!(server.raw("POST", CHAT, &[&own], &body).0, 200);
    let (status, text) = server.raw("GET", "/v1/models/../../etc/passwd", &[], "");
    assert!(status == 404 && text.contains("model_not_found"), "{status} {text}");
    assert_eq!(server.get("/health"), (200, json!({ "status": "ok" })));
}

#[test]
fn adapters_come_and_go() {
    let room = Room::new();
    train_adapter(&room);
    std::fs::create_dir(room.path("all")).unwrap();
    std::fs::rename(room.path("run/adapter"), room.path("all/own")).unwrap();
    let server =
        Server::of_tiny(&room, &["--adapter", "changed=all/own", "--adapter-dir", "all", "--api-key", "k"]);
    let key = ["Authorization: Bearer k", "Content-Type: application/json"];
    let call = |method, path, body: &Value| {
        let (status, text) = server.raw(method, path, &key, &body.to_string());
        (status, serde_json::from_str::<Value>(&text).unwrap_or_else(|_| panic!("{text}")))
    };
    assert_eq!(server.post(CHAT, &ask(&json!({}))).0, 401);
    assert_eq!(server.models, ["tiny", "changed"]);
    let answer = |model: &str| {
        let (status, answer) = call("POST", CHAT, &ask(&json!({ "model": model })));
        assert_eq!(status, 200, "{answer}");
        content(&answer, 0).to_owned()
    };
    // Both at once, each as `generate` answers.
    let (base, changed) = std::thread::scope(|scope| {
        let base = scope.spawn(|| answer("tiny"));
        let changed = scope.spawn(|| answer("changed"));
        (base.join().unwrap(), changed.join().unwrap())
    });
    let line =
        ["generate", "--model", "tiny", "--prompt", QUESTION, "--temperature", "0", "--max-new-tokens", "12"];
    assert_eq!(room.json(&line)["answers"][0]["completion"], base.as_str());
    let adapted = room.json(&[&line[..], &["--adapter", "all/own"]].concat());
    assert_eq!(adapted["answers"][0]["completion"], changed.as_str());
    assert_ne!(base, changed);

    let load = |name: &str, path: &str| {
        call("POST", "/v1/load_lora_adapter", &json!({ "lora_name": name, "lora_path": path }))
    };
    assert_eq!(load("second", "own").0, 200);
    assert_eq!(answer("second"), changed);
    let ids = || {
        let (_, all) = call("GET", "/v1/models", &Value::Null);
        let ids =
            all["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["tiny", "changed", "second"]);
    assert_eq!(call("GET", "/v1/models/second", &Value::Null).1["parent"], "tiny");
    for (name, path, part) in [
        ("second", "own", "a name that is free"),
        ("third", "../model", "a folder inside"),
        ("third", "/etc", "a folder inside"),
        ("third", "none", "a folder inside"),
        ("third", ".", "adapter_config.json"),
    ] {
        let (status, answer) = load(name, path);
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let drop = |name: &str| call("POST", "/v1/unload_lora_adapter", &json!({ "lora_name": name }));
    assert_eq!(drop("changed").0, 200);
    assert_eq!(drop("changed").0, 404);
    assert_eq!(drop("tiny").0, 404);
    assert_eq!(ids(), ["tiny", "second"]);
    assert_eq!(call("POST", CHAT, &ask(&json!({ "model": "changed" }))).0, 404);
    assert_eq!(answer("second"), changed);
}

#[test]
fn clients_that_leave_leave_nothing_behind() {
    let room = Room::new();
    let mut server = Server::of_tiny(&room, &["--max-num-seqs", "4", "--max-queue", "4"]);
    let headers = ["Content-Type: application/json"];
    let long = |i: u32| {
        let body =
            ask(&json!({ "max_tokens": 300, "temperature": 1, "seed": i, "stream": i.is_multiple_of(2) }));
        server.connect("POST", CHAT, &headers, &body.to_string())
    };
    // More than there is room for: some are refused, and say when to come again.
    let busy: Vec<TcpStream> = (0..30).map(|i| long(2 * i)).collect();
    let refused = busy.into_iter().filter(|stream| {
        let mut first = [0; 12];
        let mut stream = stream;
        stream.read_exact(&mut first).unwrap();
        first.ends_with(b"429")
    });
    assert!(refused.count() > 0);
    #[cfg(target_os = "linux")]
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Some leave at once, some after the first bytes, some of those that stream after more.
    let round = |from: u32| {
        for i in from..from + 50 {
            let mut stream = long(i);
            let mut first = *b"HTTP/1.1 429";
            let waits = !i.is_multiple_of(3) && i.is_multiple_of(2);
            while waits && first.ends_with(b"429") {
                std::thread::sleep(std::time::Duration::from_millis(20));
                stream = long(i);
                stream.read_exact(&mut first).unwrap();
            }
            if i % 6 == 4 {
                let _ = stream.read(&mut [0; 2000]);
            }
        }
    };
    round(0);
    #[cfg(target_os = "linux")]
    let before = resident();
    (1..4).for_each(|n| round(50 * n));
    // All seats are free again, at once.
    let begun = std::time::Instant::now();
    let four = loop {
        let (status, answer) = server.post(CHAT, &ask(&json!({ "n": 4 })));
        if status == 200 {
            break answer;
        }
        assert!(status == 429 && begun.elapsed().as_secs() < 20, "{:?}: {answer}", begun.elapsed());
    };
    assert_eq!(four["choices"].as_array().unwrap().len(), 4);
    #[cfg(target_os = "linux")]
    assert!(resident() < before + 30_000, "{before} kB before, {} after", resident());

    // Ctrl-C ends it, with code 0; an answer that was being streamed says so.
    let mut open = long(1000);
    let _ = open.read(&mut [0; 64]);
    super::room::interrupt(&server.child, "INT");
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the server is ending") || rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_server_refuses_what_it_cannot_serve() {
    let room = Room::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let serve = |flags: &[&str], parts: &[&str]| {
        room.refuses(&[&["serve", "--model", "tiny"], flags].concat(), parts);
    };
    serve(&["--port", &port], &["--port: expected a free port", "give another --port"]);
    serve(&["--host", "0.0.0.0"], &["--host: expected an API key", "--api-key KEY"]);
    serve(&["--max-num-seqs", "0"], &["--max-num-seqs: expected at least 1"]);
    serve(&["--max-num-seqs", "65"], &["--max-num-seqs: expected 1 to 64"]);
    serve(&["--port", "0", "--max-model-len", "9999"], &["--max-model-len: expected 2 to 512"]);
    serve(&["--adapter", "a=none"], &["--adapter", "none"]);
    serve(&["--adapter-dir", "none"], &["--adapter-dir: expected a folder"]);
    room.refuses(&["serve", "--model", "none-such"], &["--model"]);
}

#[test]
fn a_lost_gpu_is_opened_again() {
    let room = Room::new();
    train_adapter(&room);
    let line = ["serve", "--model", "tiny", "--adapter", "changed=run/adapter"];
    let asked = ["tiny", "changed"].map(|model| ask(&json!({ "model": model })));
    let server = Server::start(&room, &line);
    let wanted = asked.clone().map(|asked| content(&server.ok(CHAT, &asked), 0).to_owned());
    assert_ne!(wanted[0], wanted[1]);
    drop(server);
    let server = Server::with(&room, &line, &[("AWEIGH_FAULTS", "device-lost@20")]);
    let mut lost = 0;
    for i in 0..12 {
        let (status, answer) = server.post(CHAT, &asked[i % 2]);
        if status == 200 {
            assert_eq!(content(&answer, 0), wanted[i % 2]);
        } else {
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(status == 500 && message.ends_with("ask again"), "{status} {message}");
            lost += 1;
        }
    }
    assert_eq!((lost, server.get("/health").0), (1, 200));
}
