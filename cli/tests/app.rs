//! `aweigh app`: what the page asks. `cargo xtask page` drives the page itself.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::room::{Room, interrupt, is_wine};
use super::server::Server;

/// The app with its files in `home`.
fn start(room: &Room) -> Server {
    Server::start(room, &["app", "--dir", "home", "--no-open"])
}

/// Asks until `found` finds something.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn open_tiny(app: &Server) {
    app.ok("/app/model", &json!({ "name": "tiny" }));
    until("the model", || (app.get("/app/state").1["model"]["status"] == "ready").then_some(()));
}

/// Waits until run `id` is in this stage.
fn stage(app: &Server, id: u64, wanted: &str) -> Value {
    until(wanted, || {
        let run = app.get(&format!("/app/runs/{id}")).1;
        assert_ne!(run["stage"], "failed", "{run}");
        (run["stage"] == wanted).then_some(run)
    })
}

/// Waits until the work has ended, without an error.
fn worked(app: &Server, id: u64, wanted: &Value) {
    app.ok(&format!("/app/runs/{id}/work"), wanted);
    let work = until("the work", || {
        let work = app.get("/app/state").1["work"].clone();
        (work["ended"] == true).then_some(work)
    });
    assert_eq!(work["error"], Value::Null, "{work}");
}

fn import(app: &Server, name: &str, text: &str) -> (u16, Value) {
    let (status, body) = app.raw("POST", &format!("/app/flags/import?name={name}"), &[], text);
    (status, serde_json::from_str(&body).unwrap())
}

/// Settings of a run that ends soon.
fn short(steps: usize) -> Value {
    let more = "[anchors]\nmax_new_tokens = 8\n[method]\nnum_samples = 2\n[stop]\neval_steps = 2\n\
                [train]\nnum_train_epochs = 1000.0";
    json!({ "max_steps": steps, "more": more, "keep_chat": true })
}

#[test]
fn flags_become_a_run_that_can_be_asked_compared_and_taken_away() {
    let room = Room::new();
    let app = start(&room);
    for (path, kind) in [("/", "<!doctype html>"), ("/main.js", "import "), ("/chart.css", ".line")] {
        let (status, text) = app.raw("GET", path, &[], "");
        assert!(status == 200 && text.contains(kind), "{path} {text}");
    }
    let message =
        |answer: (u16, Value)| (answer.0, answer.1["error"]["message"].as_str().unwrap().to_owned());
    let (status, text) = message(app.get("/app/flags"));
    assert!(status == 400 && text.contains("expected an open model"), "{text}");
    assert_eq!(app.post("/v1/chat/completions", &json!({ "messages": [] })).0, 503);
    let found = app.ok("/app/models/describe", &json!({ "name": "tiny" }));
    assert!(
        found["parameters"].as_u64().unwrap() > 1_000_000 && found["to_align"].as_u64().unwrap() > 1 << 20
    );
    let (status, text) = message(app.post("/app/models/describe", &json!({ "name": "./nothing-here" })));
    assert!(status == 400 && text.contains("./nothing-here"), "{text}");
    open_tiny(&app);

    // A flag, taken back, and a file of them; a broken file changes nothing.
    let prompt = json!([{ "role": "user", "content": "My printer is broken." }]);
    let answer =
        app.ok("/v1/chat/completions", &json!({ "messages": prompt, "max_tokens": 8, "temperature": 0 }));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let completion = json!([{ "role": "assistant", "content": text }]);
    let flag = json!({ "prompt": prompt, "completion": completion, "parts": [&text[..5]] });
    let id = app.ok("/app/flags", &flag)["id"].as_u64().unwrap();
    assert_eq!(app.get("/app/flags").1["rule"], format!(r"match:\b{}\b", text[..5].trim().to_lowercase()));
    let (status, _) = app.raw("DELETE", &format!("/app/flags/{id}"), &[], "");
    assert_eq!((status, app.get("/app/state").1["flags"]["count"].as_u64()), (200, Some(0)));
    let (status, text) = message(app.post("/app/plan", &json!({})));
    assert!(status == 400 && text.contains("flags: expected at least one"), "{text}");
    let rows = fs::read_to_string(room.path("flagged.jsonl")).unwrap();
    let rows: String = rows.lines().take(12).map(|line| format!("{line}\n")).collect();
    let (status, done) = import(&app, "some.jsonl", &rows);
    assert_eq!((status, done["added"].as_u64()), (200, Some(12)), "{done}");
    let (status, text) = message(import(&app, "broken.jsonl", "{\"prompt\": "));
    assert!(status == 400 && text.starts_with("broken.jsonl:1: expected"), "{text}");
    let kept = fs::read_to_string(room.path("home/tiny/flagged.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 12);
    // The command reads the same file.
    let data = room.json(&["data", "home/tiny/flagged.jsonl", "--model", "tiny"]);
    assert_eq!((data["rows"].as_u64(), data["kinds"]["flagged"].as_u64()), (Some(12), Some(12)));

    // The user's own rule.
    let put = |rule: &str| app.raw("PUT", "/app/rule", &[], &json!({ "rule": rule }).to_string());
    let (status, text) = put("words");
    assert!(status == 400 && text.contains("the unwanted habit: expected a rule"), "{text}");
    assert_eq!(
        app.ok("/app/rule/matches", &json!({ "texts": ["Stop it.", "Fine."] })),
        json!([false, false])
    );
    assert_eq!(put("match:stop").0, 200);
    assert_eq!(app.ok("/app/rule/matches", &json!({ "texts": ["Stop it.", "Fine."] })), json!([true, false]));
    assert_eq!(fs::read_to_string(room.path("home/tiny/rule.txt")).unwrap(), "match:stop");

    let plan = app.ok("/app/plan", &short(4));
    assert!(plan["settings"].as_str().unwrap().contains("unwanted = \"match:stop\""), "{plan}");
    assert_eq!((plan["train"].as_u64(), plan["held_out"].as_u64()), (Some(10), Some(2)), "{plan}");
    assert_eq!((plan["steps"].as_u64(), &plan["seconds"]), (Some(4), &Value::Null), "{plan}");
    for (more, expected) in [
        ("[train]\nlerning_rate = 1", "settings:2: train.lerning_rate"),
        ("[model]\nmodel = \"other\"", "settings: model.model: expected none"),
        ("[lora]\nenabled = false", "settings: lora.enabled"),
    ] {
        let (status, text) = message(app.post("/app/plan", &json!({ "more": more })));
        assert!(status == 400 && text.contains(expected), "{text}");
    }
    assert_eq!(app.ok("/app/runs", &short(4))["id"], 1);
    let run = stage(&app, 1, "finished");
    assert_eq!((run["summary"]["steps"].as_u64(), run["train"].as_u64()), (Some(4), Some(10)));
    let again = app.ok("/app/plan", &short(8));
    let (seconds, taken) = (again["seconds"].as_f64().unwrap(), run["summary"]["seconds"].as_f64().unwrap());
    assert!((seconds - 2.0 * taken).abs() < 1e-6, "{seconds} {taken}");
    assert!(run["charts"].as_array().unwrap().iter().any(|chart| chart["title"] == "Rewards"));
    let models = app.get("/v1/models").1;
    let names: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["base", "run-1"]);
    app.ok("/v1/chat/completions", &json!({ "model": "run-1", "messages": prompt, "max_tokens": 4 }));

    worked(&app, 1, &json!({ "what": "compare" }));
    let run = app.get("/app/runs/1").1;
    let sets: Vec<&Value> = run["comparison"].as_array().unwrap().iter().map(|set| &set["name"]).collect();
    assert_eq!(sets, ["flagged, held out, 2 prompts", "help desk, held out, 200 prompts"]);
    let vote =
        json!({ "run": 1, "prompt": "p", "before": "a", "after": "b", "choice": "after", "blind": true });
    assert_eq!(app.ok("/app/votes", &vote)["blind"]["after"], 1);

    for (kind, file) in [("gguf-adapter", "adapter.gguf"), ("report", "report.html"), ("ollama", "ollama")] {
        worked(&app, 1, &json!({ "what": "export", "kind": kind }));
        assert!(room.path(&format!("home/tiny/exports/1/{file}")).exists(), "{kind}");
    }
    let (status, text) = app.raw("GET", "/app/runs/1/files/ollama/Modelfile", &[], "");
    assert!(status == 200 && text.starts_with("FROM ./model.gguf\nTEMPLATE"), "{text}");
    for path in [
        "files/..",
        "files/..%2F..%2Fproject.json",
        "files/ollama/..%2F..%2F..%2Fproject.json",
        "files/.lock",
        "files/adapter/..%2Fconfig.toml",
        "files/%2Fetc%2Fpasswd",
        "files/adapter/%5C..%5Cconfig.toml",
    ] {
        assert_eq!(app.raw("GET", &format!("/app/runs/1/{path}"), &[], "").0, 404, "{path}");
    }
    let chat = json!({ "id": "x", "title": "t", "messages": [] });
    let save = |path: &str| app.raw("PUT", path, &[], &chat.to_string()).0;
    assert_eq!((save("/app/chats/a-1"), save("/app/chats/..%2Fproject")), (200, 400));
    assert_eq!(app.get("/app/chats").1[0]["id"], "a-1");
    assert_eq!(app.raw("DELETE", "/app/runs/1", &[], "").0, 200);
    assert!(!room.path("home/tiny/runs/1").exists() && !room.path("home/tiny/exports/1").exists());
}

#[test]
fn foreign_pages_and_a_second_app_are_refused() {
    let room = Room::new();
    let app = start(&room);
    for headers in [
        &["Host: evil.example"][..],
        &["Origin: http://evil.example"],
        &["Origin: null"],
        &["Sec-Fetch-Site: cross-site"],
    ] {
        for (method, path) in
            [("GET", "/"), ("GET", "/app/state"), ("POST", "/app/model"), ("GET", "/v1/models")]
        {
            assert_eq!(app.raw(method, path, headers, "{\"name\": \"tiny\"}").0, 403, "{method} {path}");
        }
    }
    assert_eq!(app.get("/app/state").1["project"], Value::Null);
    let port = app.address.rsplit_once(':').unwrap().1;
    room.refuses(&["app", "--dir", "home", "--port", "0", "--no-open"], &["which another `aweigh app` uses"]);
    room.refuses(&["app", "--dir", "other", "--port", port, "--no-open"], &["--port: expected a free port"]);
}

#[test]
fn a_run_is_paused_resumed_and_outlives_the_app() {
    if is_wine() {
        return;
    }
    let room = Room::new();
    let mut app = start(&room);
    open_tiny(&app);
    let rows = fs::read_to_string(room.path("flagged.jsonl")).unwrap();
    import(&app, "some.jsonl", &rows.lines().take(12).map(|line| format!("{line}\n")).collect::<String>());
    let begun = |app: &Server, step: f64| {
        until("a step", || {
            let run = app.get("/app/state").1["run"].clone();
            (run["phase"] == "training" && run["done"].as_f64() > Some(step)).then_some(())
        });
    };
    app.ok("/app/runs", &short(2000));
    begun(&app, 0.0);
    // Only one run at a time, and the model stays; the chat goes on.
    let (status, error) = app.post("/app/runs", &short(2));
    assert!(
        status == 400 && error["error"]["message"].as_str().unwrap().contains("run 1 goes on"),
        "{error}"
    );
    assert_eq!(app.post("/app/model", &json!({ "name": "tiny" })).0, 400);
    app.ok("/v1/completions", &json!({ "prompt": "Hi", "max_tokens": 2 }));
    app.ok("/app/runs/1/pause", &json!({}));
    stage(&app, 1, "paused");
    assert_eq!(app.post("/app/runs/1/pause", &json!({})).0, 409);
    app.ok("/app/runs/1/resume", &json!({ "keep_chat": false }));
    begun(&app, 1.0);
    let state = app.get("/app/state").1;
    assert!(state["model"]["why"].as_str().unwrap().contains("a run uses the GPU"), "{state}");
    // Ctrl-C keeps the run's state.
    interrupt(&app.child, "INT");
    assert_eq!(app.child.wait().unwrap().code(), Some(0));
    let app = start(&room);
    assert_eq!(app.get("/app/state").1["last"], "tiny");
    open_tiny(&app);
    assert_eq!(app.get("/app/state").1["flags"]["count"], 12);
    assert_eq!(app.get("/app/runs").1[0]["stage"], "paused");
    app.ok("/app/runs/1/resume", &json!({ "keep_chat": false }));
    begun(&app, 2.0);
    app.ok("/app/runs/1/finish", &json!({}));
    let run = stage(&app, 1, "finished");
    assert_eq!(run["summary"]["reason"], "requested", "{run}");
    // The model answers again, with the run beside it.
    until("the model", || {
        let models = app.get("/app/state").1["model"]["models"].clone();
        (models == json!(["base", "run-1"])).then_some(())
    });
}
