//! The page of `aweigh app` in headless Chromium.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::{cargo, done, npm};
use crate::vulkan;

/// Names under which Chromium is installed.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// The browser: `AWEIGH_CHROMIUM`, or the first one in the PATH. On Debian and Ubuntu one is installed.
fn browser() -> Result<String, String> {
    if let Ok(path) = env::var("AWEIGH_CHROMIUM") {
        return Ok(path);
    }
    let found = || {
        let runs =
            |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|run| run.status.success());
        BROWSERS.iter().find(runs).map(|name| (*name).to_owned())
    };
    if let Some(name) = found() {
        return full_path(&name);
    }
    if cfg!(target_os = "linux") {
        let _ = done(Command::new("apt-get").args(["install", "--yes", "--quiet", "chromium"]));
    }
    let fix = "install Chromium, or set AWEIGH_CHROMIUM to its program";
    full_path(&found().ok_or_else(|| format!("no Chromium was found\n  what to do: {fix}"))?)
}

fn full_path(name: &str) -> Result<String, String> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let path = env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    path.map(|path| path.display().to_string()).ok_or_else(|| format!("{name}: not in the PATH"))
}

/// What a script that drives a page gets: Chromium, and the folders of Playwright and axe-core.
pub fn drivers() -> Result<[PathBuf; 3], String> {
    let playwright = npm("playwright-core@1.65.1", "playwright-core")?;
    Ok([browser()?.into(), playwright, npm("axe-core@4.14.1", "axe-core")?])
}

/// The program, built.
pub fn program() -> Result<PathBuf, String> {
    done(cargo().args(["build", "--package", "aweigh-cli"]))?;
    let aweigh = format!("target/debug/aweigh{}", env::consts::EXE_SUFFIX);
    fs::canonicalize(&aweigh).map_err(|error| format!("{aweigh}: {error}"))
}

/// Drives the page through tests/page/app.mjs.
pub fn page() -> Result<(), String> {
    vulkan::ensure_vulkan()?;
    let drivers = drivers()?;
    let aweigh = program()?;
    let folder = env::current_dir().map_err(|error| error.to_string())?.join("target/tools/page");
    let script = Path::new("tests/page/app.mjs");
    done(Command::new("node").arg(script).arg(aweigh).args(drivers).arg(folder))
}
