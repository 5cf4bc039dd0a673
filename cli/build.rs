//! Puts together what `aweigh --version` says: version, commit, target and wgpu's version in the lock file.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What is compiled, from the folder of this package.
const SOURCES: [&str; 7] =
    ["src", "../app/src", "../src", "../shaders", "../assets", "../Cargo.toml", "../Cargo.lock"];

/// The short commit of this source, with a + if it was changed: git's, or the one that cargo wrote into a
/// published package.
fn commit() -> Option<String> {
    if let Ok(info) = fs::read_to_string(".cargo_vcs_info.json") {
        let sha = info.split('"').find(|part| part.len() == 40)?;
        return Some(sha[..9].to_owned());
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // A checkout of this repository, not one that has this source somewhere in it.
    let top = fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != fs::canonicalize("..").ok()? {
        return None;
    }
    let places =
        ["HEAD", "logs/HEAD"].map(|name| git(&["rev-parse", "--git-path", name]).unwrap_or_default());
    let places = places.iter().map(String::as_str).chain(SOURCES).filter(|path| Path::new(path).exists());
    places.for_each(|path| println!("cargo::rerun-if-changed={path}"));
    let changed = git(&[&["status", "--porcelain", "--untracked-files=no", "--"][..], &SOURCES].concat());
    let mark = if changed.is_none_or(|changes| changes.is_empty()) { "" } else { "+" };
    Some(git(&["rev-parse", "--short=9", "HEAD"])? + mark)
}

/// wgpu's version in the lock file.
fn wgpu() -> Option<String> {
    let lock = ["Cargo.lock", "../Cargo.lock"].iter().find_map(|path| fs::read_to_string(path).ok())?;
    let (_, after) = lock.split_once("name = \"wgpu\"")?;
    after.split('"').nth(1).map(str::to_owned)
}

fn main() {
    // web/ has this script too, without a file of its own.
    if Path::new("build.rs").exists() {
        println!("cargo::rerun-if-changed=build.rs");
    }
    let commit = commit().map(|commit| format!("{commit}, ")).unwrap_or_default();
    let wgpu = wgpu().map(|version| format!(", wgpu {version}")).unwrap_or_default();
    let (version, target) = (env::var("CARGO_PKG_VERSION"), env::var("TARGET"));
    let (version, target) = (version.unwrap_or_default(), target.unwrap_or_default());
    println!("cargo::rustc-env=AWEIGH_VERSION={version} ({commit}{target}{wgpu})");
}
