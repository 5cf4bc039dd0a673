//! Models by their names on the Hub, against a small server on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use assert_cmd::Command;

use super::room::{Room, assets, is_wine, texts};

/// One request: its path, the first byte that it asks for, and its token.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    path: String,
    from: usize,
    token: Option<String>,
}

/// A server of the repositories `lab/model` (the built-in model), `lab/gated` and `lab/gguf`. The first
/// response with weights is cut off half-way.
struct Hub {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            files.insert(format!("lab/model/{name}"), fs::read(assets().join(name)).unwrap());
        }
        files.insert("lab/gguf/README.md".into(), b"weights of 4 bits".to_vec());
        files.insert(
            "lab/gguf/small.Q8_0.gguf".into(),
            include_bytes!("../../tests/golden/gguf/small.gguf").to_vec(),
        );
        std::thread::spawn(move || {
            let mut breaks = 1;
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &files, &kept, &mut breaks);
            }
        });
        Self { address, asked }
    }

    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn command(&self, room: &Room, arguments: &[&str]) -> Command {
        let mut command = room.command();
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", room.path("hf")).args(arguments);
        for name in ["HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command
    }
}

fn serve(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    kept: &Mutex<Vec<Asked>>,
    breaks: &mut usize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut from, mut to, mut token) = (0, usize::MAX, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => {
                let (first, last) = value.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
                (from, to) = (first.parse().unwrap_or(0), last.parse().unwrap_or(usize::MAX - 1) + 1);
            }
            "authorization" => token = Some(value.to_string()),
            _ => {}
        }
    }
    kept.lock().unwrap().push(Asked { path: path.clone(), from, token: token.clone() });
    let mut reply = |status: &str, headers: &str, body: &[u8], sent: usize| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            body.len()
        )?;
        stream.write_all(&body[..sent])
    };
    if path.contains("lab/gated") && token.as_deref() != Some("Bearer secret") {
        return reply("401 Unauthorized", "", b"", 0);
    }
    if let Some(name) = path.strip_prefix("/api/models/").and_then(|rest| rest.strip_suffix("/revision/main"))
    {
        let name = name.replace("gated", "model");
        let of_it = files.keys().filter_map(|file| file.strip_prefix(&format!("{name}/")));
        let listed: Vec<String> = of_it.map(|file| format!("{{\"rfilename\": \"{file}\"}}")).collect();
        if listed.is_empty() {
            return reply("404 Not Found", "", b"", 0);
        }
        let body = format!("{{\"sha\": \"abc\", \"siblings\": [{}]}}", listed.join(", "));
        return reply("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), body.len());
    }
    let name = path.replace("/resolve/main", "").replace("gated", "model");
    let Some(file) = files.get(name.trim_start_matches('/')) else {
        return reply("404 Not Found", "", b"", 0);
    };
    let part = &file[from.min(file.len())..to.min(file.len())];
    let end = (from + part.len()).saturating_sub(1);
    let etag = name.replace(['/', '.'], "");
    let headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: abc\r\nContent-Range: bytes {from}-{end}/{}\r\n",
        file.len()
    );
    let mut sent = part.len();
    if name.ends_with("model.safetensors") && part.len() > 100_000 && *breaks > 0 {
        *breaks -= 1;
        sent /= 2;
    }
    reply("206 Partial Content", &headers, part, sent)
}

const ANSWER: [&str; 7] =
    ["generate", "--prompt", "My printer is broken.", "--max-new-tokens", "8", "--json", "--model"];

#[test]
fn a_model_is_downloaded_once_and_taken_up_where_it_broke_off() {
    if is_wine() {
        return;
    }
    let (room, hub) = (Room::new(), Hub::new());
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["answers"][0]["completion"].clone()
    };
    let by_name = [&ANSWER[..], &["lab/model"]].concat();
    let first = run(hub.command(&room, &by_name).env("HF_TOKEN", "a-token"));
    assert_eq!(first, run(&mut hub.command(&room, &[&ANSWER[..], &["model"]].concat())));
    let asked = hub.take();
    let of_weights: Vec<usize> = asked
        .iter()
        .filter(|asked| asked.path.ends_with("model.safetensors"))
        .map(|asked| asked.from)
        .collect();
    // Requests for the size, the first half, and the rest.
    let size = fs::metadata(assets().join("model.safetensors")).unwrap().len() as usize;
    assert_eq!(of_weights, [0, 0, size / 2]);
    assert!(asked.iter().all(|asked| asked.token.as_deref() == Some("Bearer a-token")), "{asked:?}");
    let kept = room.path("hf/hub/models--lab--model/snapshots/abc/model.safetensors");
    assert_eq!(fs::read(kept).unwrap(), fs::read(assets().join("model.safetensors")).unwrap());

    assert_eq!(first, run(&mut hub.command(&room, &by_name)));
    assert_eq!(first, run(hub.command(&room, &by_name).env("HF_HUB_OFFLINE", "1").env_remove("HF_ENDPOINT")));
    assert_eq!(hub.take(), [], "a model in the cache asks nothing");

    // The config of an adapter and a run's settings name the model as the user did.
    let train = ["align", "--model", "lab/model", "--train", "flagged.jsonl", "--output-dir", "out"];
    let small = ["--max-samples", "2", "--max-steps", "1", "--num-samples", "1", "--max-new-tokens", "4"];
    assert!(hub.command(&room, &[&train[..], &small].concat()).output().unwrap().status.success());
    let config = fs::read_to_string(room.path("out/adapter/adapter_config.json")).unwrap();
    assert!(config.contains("\"base_model_name_or_path\": \"lab/model\""), "{config}");
}

#[test]
fn a_plan_needs_no_weights() {
    if is_wine() {
        return;
    }
    let (room, hub) = (Room::new(), Hub::new());
    let json = |arguments: &[&str]| {
        let output = hub.command(&room, &[arguments, &["--json"]].concat()).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()
    };
    assert_eq!(json(&["plan", "--model", "lab/model"])["peak"], json(&["plan", "--model", "model"])["peak"]);
    let figures = json(&["inspect", "--model", "lab/model", "--tensors"]);
    assert_eq!(figures["tensors"], json(&["inspect", "--model", "model", "--tensors"])["tensors"]);
    let weights = room.path("hf/hub/models--lab--model/snapshots/abc/model.safetensors");
    assert!(!weights.exists());
    let asked = hub.take();
    let parts: Vec<usize> = asked
        .iter()
        .filter(|asked| asked.path.ends_with("model.safetensors"))
        .map(|asked| asked.from)
        .collect();
    assert_eq!(parts, [0, 8, 0, 8]);
}

#[test]
fn what_the_hub_has_not_or_will_not_give() {
    if is_wine() {
        return;
    }
    let (room, hub) = (Room::new(), Hub::new());
    let refused = |model: &str, parts: &[&str]| {
        // Folders of the cache may be created; nothing else may change.
        room.refused(&mut hub.command(&room, &[&ANSWER[..], &[model]].concat()), parts);
    };
    refused(
        "lab/none",
        &["--model lab/none: expected a directory, a GGUF file, tiny, or a model's name", "spelling"],
    );
    refused("lab/gated", &["--model lab/gated", "a repository that needs a login", "HF_TOKEN"]);
    refused("lab/gguf", &["expected config.json in the repository", "lab/gguf/small.Q8_0.gguf"]);
    refused("lab/gguf/other.gguf", &["expected other.gguf in the repository", "lab/gguf/small.Q8_0.gguf"]);
    let mut command = hub.command(&room, &[&ANSWER[..], &["lab/model"]].concat());
    room.refused(command.env("HF_HUB_OFFLINE", "1"), &["found missing files, and HF_HUB_OFFLINE is set"]);
    assert!(hub.take().iter().all(|asked| !asked.path.contains("lab/model")));
    let mut command = hub.command(&room, &[&ANSWER[..], &["lab/model"]].concat());
    room.refused(
        command.env("HF_ENDPOINT", "http://127.0.0.1:9"),
        &["expected an answer from the Hugging Face Hub"],
    );

    let output =
        hub.command(&room, &["inspect", "--model", "lab/gated"]).env("HF_TOKEN", "secret").output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    // A file of a repository is found. The error is about the tensors that this file lacks.
    let mut command = hub.command(&room, &[&ANSWER[..], &["lab/gguf/small.Q8_0.gguf"]].concat());
    let (_, stderr) = texts(&command.output().unwrap());
    assert!(stderr.contains("small.Q8_0.gguf: expected tensor token_embd.weight"), "{stderr}");
}
