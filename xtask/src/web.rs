//! The page that runs Aweigh in a browser's tab: built, served, and tried in headless Chromium.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::page::drivers;
use crate::tools::{cargo, done};

const TARGET: &str = "wasm32-unknown-unknown";
/// Where the page is built.
const BUILT: &str = "target/web";
/// The page's own files, and those that it has from the page of `aweigh app`.
const FILES: [(&str, &[&str]); 2] = [
    ("web/page", &["index.html", "check.js", "engine.js", "worker.js"]),
    ("cli/src/app/page", &["dom.js", "style.css", "icon.svg"]),
];

/// Builds the page, and then serves it with `--serve` or tries it with `--check`.
pub fn web(arguments: &[String]) -> Result<(), String> {
    let wanted = match arguments {
        [] => "",
        [one] if ["--serve", "--check"].contains(&one.as_str()) => one,
        _ => return Err("usage: cargo xtask web [--serve | --check]".into()),
    };
    build()?;
    let folder = fs::canonicalize(BUILT).map_err(|error| format!("{BUILT}: {error}"))?;
    if wanted.is_empty() {
        println!("the page is in {BUILT}: any server of files can serve it");
        return Ok(());
    }
    let port = if wanted == "--serve" { 8000 } else { 0 };
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|error| format!("port {port}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let url = format!("http://localhost:{}/", address.port());
    if wanted == "--serve" {
        println!("{url} (Ctrl-C ends it)");
        serve(&listener, &folder);
        return Ok(());
    }
    std::thread::spawn(move || serve(&listener, &folder));
    let drivers = drivers()?;
    let shots = env::current_dir().map_err(|error| error.to_string())?.join("target/tools/web");
    let mut script = Command::new("node");
    script.arg("tests/page/web.mjs").arg(url).args(drivers).arg(shots);
    done(&mut script)
}

/// Compiles the library to WebAssembly, and puts the page together.
fn build() -> Result<(), String> {
    let _ = Command::new("rustup").args(["target", "add", TARGET]).status();
    done(cargo().args(["build", "--release", "--package", "aweigh-web", "--target", TARGET]))?;
    let wasm = format!("target/{TARGET}/release/aweigh_web.wasm");
    fs::create_dir_all(BUILT).map_err(|error| format!("{BUILT}: {error}"))?;
    done(Command::new(bindgen()?).args(["--target", "web", "--no-typescript", "--out-dir", BUILT, &wasm]))?;
    for (folder, names) in FILES {
        for name in names {
            let from = Path::new(folder).join(name);
            fs::copy(&from, Path::new(BUILT).join(name))
                .map_err(|error| format!("{}: {error}", from.display()))?;
        }
    }
    let size = fs::metadata(Path::new(BUILT).join("aweigh_web_bg.wasm")).map_or(0, |data| data.len());
    println!("WebAssembly: {:.1} MB", size as f64 / 1e6);
    Ok(())
}

/// wasm-bindgen's program in the version of the lock file, installed from crates.io.
fn bindgen() -> Result<PathBuf, String> {
    let lock = fs::read_to_string("Cargo.lock").map_err(|error| format!("Cargo.lock: {error}"))?;
    let version = lock.split_once("name = \"wasm-bindgen\"").and_then(|(_, after)| after.split('"').nth(1));
    let version = version.ok_or("Cargo.lock has no wasm-bindgen")?;
    let root = Path::new("target/tools").join(format!("wasm-bindgen-{version}"));
    let program = root.join("bin").join(format!("wasm-bindgen{}", env::consts::EXE_SUFFIX));
    if !program.is_file() {
        let install = ["install", "wasm-bindgen-cli", "--quiet", "--version", version, "--root"];
        done(cargo().args(install).arg(&root))?;
    }
    Ok(program)
}

/// Serves the files of a folder to this machine, until the program ends.
fn serve(listener: &TcpListener, folder: &Path) {
    for stream in listener.incoming().flatten() {
        let folder = folder.to_owned();
        std::thread::spawn(move || answer(stream, &folder));
    }
}

fn answer(mut stream: TcpStream, folder: &Path) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let path = first.strip_prefix("GET /")?.split([' ', '?']).next()?;
    let name = if path.is_empty() { "index.html" } else { path };
    // All files are in one folder, with plain names.
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !name.starts_with('.');
    let body = if plain { fs::read(folder.join(name)).ok() } else { None };
    let kind = match name.rsplit('.').next()? {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    };
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok()
}
