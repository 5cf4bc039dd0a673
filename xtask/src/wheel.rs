//! The Python package: a wheel for Python 3.9 and newer, and its tests in an environment without Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::python::{GLIBC, environment, path_with, program, zig};
use crate::tools::{done, path_list};

/// The largest wheel, in bytes.
const MOST: u64 = 15_000_000;

/// Builds the wheel for this machine, or for another `target`, and tests it if it is for this machine.
pub fn wheel(target: Option<&str>) -> Result<(), String> {
    let wheel = build(target)?;
    if target.is_none() { check(&wheel) } else { Ok(()) }
}

fn build(target: Option<&str>) -> Result<PathBuf, String> {
    let made = Path::new("target/wheel/dist");
    // zig links against an old glibc, for any processor.
    let tools = zig(&["maturin==1.16.0"])?;
    let _ = fs::remove_dir_all(made);
    let mut maturin = Command::new(program(&tools, "maturin"));
    maturin.args(["build", "--locked", "--manifest-path", "python/Cargo.toml", "--out"]).arg(made);
    if cfg!(target_os = "linux") {
        maturin.args(["--zig", "--compatibility", &format!("manylinux_{}", GLIBC.replace('.', "_"))]);
    }
    maturin.args(target.map(|target| format!("--target={target}")));
    // maturin finds zig through this environment's Python.
    done(maturin.env("PATH", path_with(&tools, path_list("PATH"))?))?;
    let entries = fs::read_dir(made).map_err(|error| format!("{}: {error}", made.display()))?;
    let wheel = entries.flatten().map(|entry| entry.path()).next().ok_or("maturin made no wheel")?;
    let size = fs::metadata(&wheel).map_err(|error| error.to_string())?.len();
    println!("{}: {:.1} MB", wheel.display(), size as f64 / 1e6);
    if size > MOST { Err(format!("the wheel is larger than {} MB", MOST / 1_000_000)) } else { Ok(wheel) }
}

/// Installs the wheel into a new environment and runs its tests there, without cargo and rustc in PATH.
fn check(wheel: &Path) -> Result<(), String> {
    let folder = Path::new("target/wheel/check");
    let _ = fs::remove_dir_all(folder);
    let pip = environment(folder)?;
    done(Command::new(pip).args(["install", "--quiet"]).arg(wheel))?;
    let rows = Path::new("target/wheel/flagged.jsonl");
    let python = program(folder, "python");
    let unpack = "import gzip, sys; open(sys.argv[2], 'wb').write(gzip.open(sys.argv[1]).read())";
    done(Command::new(&python).args(["-c", unpack, "assets/tiny/negatives.jsonl.gz"]).arg(rows))?;
    let has_rust = |folder: &PathBuf| ["cargo", "cargo.exe"].iter().any(|name| folder.join(name).exists());
    let path = path_with(folder, path_list("PATH").into_iter().filter(|folder| !has_rust(folder)))?;
    done(Command::new(&python).arg("python/tests/test_aweigh.py").arg(rows).env("PATH", path))
}
