//! Virtual environments of Python, for tools that are on PyPI.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::done;

/// zig, which compiles and links C for other systems and for an old glibc, and what has cargo use it.
const ZIG: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];

/// The version of glibc that programs for Linux need: Debian 10's and RHEL 8's.
pub const GLIBC: &str = "2.28";

/// Makes a virtual environment in `folder`, if there is none, and returns the path of its pip.
pub fn environment(folder: &Path) -> Result<PathBuf, String> {
    let pip = program(folder, "pip");
    if !pip.exists() {
        let python = if cfg!(windows) { "python" } else { "python3" };
        done(Command::new(python).args(["-m", "venv"]).arg(folder)).map_err(|error| {
            format!("{error}\n  what to do: install Python 3.9 or newer with venv (Debian: python3-venv)")
        })?;
    }
    Ok(pip)
}

/// Installs zig, and `more`, into an environment of their own, and returns its folder.
pub fn zig(more: &[&str]) -> Result<PathBuf, String> {
    let folder = Path::new("target/wheel/tools");
    done(Command::new(environment(folder)?).args(["install", "--quiet"]).args(ZIG).args(more))?;
    Ok(folder.to_owned())
}

/// The path of a program in a virtual environment.
pub fn program(folder: &Path, name: &str) -> PathBuf {
    match cfg!(windows) {
        true => folder.join("Scripts").join(format!("{name}.exe")),
        false => folder.join("bin").join(name),
    }
}

/// A value of PATH: the programs of a virtual environment, then those of `folders`.
pub fn path_with(environment: &Path, folders: impl IntoIterator<Item = PathBuf>) -> Result<OsString, String> {
    let own = fs::canonicalize(environment).map_err(|error| error.to_string())?;
    let own = program(&own, "python").parent().map(Path::to_path_buf);
    env::join_paths(own.into_iter().chain(folders)).map_err(|error| error.to_string())
}
