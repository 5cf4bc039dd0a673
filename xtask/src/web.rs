//! The app in a browser's tab: built, served, and tried in headless Chromium.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::page::{drivers, program};
use crate::tools::{cargo, done};
use crate::vulkan;

const TARGET: &str = "wasm32-unknown-unknown";
/// Where the page is built.
const BUILT: &str = "target/web";
/// The folders of the page's files: those of `aweigh app`, then its own, which take their place.
const FOLDERS: [&str; 2] = ["app/src/app/page", "web/page"];
/// The style of charts.
const CHART_STYLE: &str = "app/src/report_page/chart.css";
/// The service worker, which gets the names of all files.
const OFFLINE: &str = "offline.js";

/// Builds the page, and then serves it with `--serve` or tries it with `--check`, also with a model of the
/// user's own if its GGUF file is given.
pub fn web(arguments: &[String]) -> Result<(), String> {
    let (wanted, model) = match arguments {
        [] => ("", None),
        [one] if ["--serve", "--check"].contains(&one.as_str()) => (one.as_str(), None),
        [check, model] if check == "--check" => (check.as_str(), Some(model)),
        _ => return Err("usage: cargo xtask web [--serve | --check [MODEL.gguf]]".into()),
    };
    let model = model.map(|path| fs::canonicalize(path).map_err(|error| format!("{path}: {error}")));
    let model = model.transpose()?;
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
    vulkan::ensure_vulkan()?;
    let aweigh = program()?;
    let drivers = drivers()?;
    let shots = env::current_dir().map_err(|error| error.to_string())?.join("target/tools/web");
    let script = |name: &str| {
        let mut command = Command::new("node");
        command.arg(Path::new("tests/page").join(name)).arg(&url);
        command
    };
    done(script("web.mjs").args(&drivers).arg(shots.join("check")))?;
    done(script("tab.mjs").arg(&aweigh).args(&drivers).arg(shots.join("tab")))?;
    model.map_or(Ok(()), |model| {
        done(script("own-model.mjs").arg(&aweigh).args(&drivers).arg(shots.join("own-model")).arg(model))
    })
}

/// Compiles the library to WebAssembly, and puts the page together.
fn build() -> Result<(), String> {
    let _ = Command::new("rustup").args(["target", "add", TARGET]).status();
    done(cargo().args(["build", "--profile", "web", "--package", "aweigh-web", "--target", TARGET]))?;
    let wasm = format!("target/{TARGET}/web/aweigh_web.wasm");
    // What an earlier build left is not part of this one.
    let _ = fs::remove_dir_all(BUILT);
    fs::create_dir_all(BUILT).map_err(|error| format!("{BUILT}: {error}"))?;
    let flags = ["--target", "web", "--no-typescript", "--remove-name-section", "--out-dir", BUILT];
    done(Command::new(bindgen()?).args(flags).arg(&wasm))?;
    let copy = |from: &Path| {
        let name = from.file_name().ok_or_else(|| format!("{}: no name", from.display()))?;
        fs::copy(from, Path::new(BUILT).join(name)).map_err(|error| format!("{}: {error}", from.display()))
    };
    for folder in FOLDERS {
        for name in names(Path::new(folder))? {
            copy(&Path::new(folder).join(name))?;
        }
    }
    copy(Path::new(CHART_STYLE))?;
    list_files()?;
    let size = fs::metadata(Path::new(BUILT).join("aweigh_web_bg.wasm")).map_or(0, |data| data.len());
    println!("WebAssembly: {:.1} MB", size as f64 / 1e6);
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let names: std::io::Result<Vec<String>> = fs::read_dir(folder).map_err(failed)?.map(name).collect();
    let mut names = names.map_err(failed)?;
    names.sort();
    Ok(names)
}

/// Tells the service worker which files there are, and a version that changes with any of them.
fn list_files() -> Result<(), String> {
    let folder = Path::new(BUILT);
    let mut all = names(folder)?;
    all.retain(|name| name != OFFLINE);
    let mut sum = DefaultHasher::new();
    for name in &all {
        let bytes = fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
        (name, bytes).hash(&mut sum);
    }
    let place = folder.join(OFFLINE);
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    let script = fs::read_to_string(&place).map_err(failed)?;
    // The page itself has no name.
    all.push("./".into());
    let script = script.replace("@VERSION@", &format!("{:016x}", sum.finish()));
    fs::write(&place, script.replace("@FILES@", &all.join("\", \""))).map_err(failed)
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
