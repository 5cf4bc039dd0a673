//! The archive of a release for this machine: program, manual pages, completions, licences, and its SHA-256.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::python::{GLIBC, path_with, program, zig};
use crate::tools::{cargo, done, path_list};

/// Shells with the names of their files.
const SHELLS: [(&str, &str); 4] =
    [("bash", "aweigh.bash"), ("zsh", "_aweigh"), ("fish", "aweigh.fish"), ("powershell", "_aweigh.ps1")];

/// Builds target/archive/aweigh-TARGET.tar.gz (.zip on Windows) and its .sha256.
pub fn archive() -> Result<(), String> {
    let target = host()?;
    let name = format!("aweigh-{target}");
    let folder = Path::new("target/archive");
    let content = folder.join(&name);
    let _ = fs::remove_dir_all(&content);
    let program = compiled(&target)?;
    let told = |error: std::io::Error| error.to_string();
    fs::create_dir_all(content.join("completions")).map_err(told)?;
    let installed = content.join(format!("aweigh{}", env::consts::EXE_SUFFIX));
    fs::copy(&program, &installed).map_err(|error| format!("{}: {error}", program.display()))?;
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(file, content.join(file)).map_err(|error| format!("{file}: {error}"))?;
    }
    // dxcompiler.dll with its licence, on Windows.
    if let Some(folder) = env::var_os("AWEIGH_DXC") {
        let files =
            fs::read_dir(&folder).map_err(|error| format!("AWEIGH_DXC: {}: {error}", folder.display()))?;
        for file in files.flatten() {
            fs::copy(file.path(), content.join(file.file_name())).map_err(told)?;
        }
    }
    let program = fs::canonicalize(&installed).map_err(told)?;
    done(Command::new(&program).args(["man", "--quiet", "--output-dir"]).arg(content.join("man")))?;
    for (shell, file) in SHELLS {
        let output = Command::new(&program).args(["completions", shell]).output().map_err(told)?;
        if !output.status.success() {
            return Err(format!("aweigh completions {shell} failed"));
        }
        fs::write(content.join("completions").join(file), output.stdout).map_err(told)?;
    }
    let archive = folder.join(name.clone() + if cfg!(windows) { ".zip" } else { ".tar.gz" });
    // Windows' tar makes a zip by the name's ending.
    let flags = if cfg!(windows) { "-acf" } else { "-czf" };
    done(Command::new("tar").arg(flags).arg(&archive).arg("-C").arg(folder).arg(&name))?;
    let bytes = fs::read(&archive).map_err(told)?;
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::write(folder.join(format!("{file}.sha256")), format!("{sum}  {file}\n")).map_err(told)?;
    println!("{}", archive.display());
    Ok(())
}

/// Builds the program with the profile `dist`; on Linux with zig, for an old glibc.
fn compiled(target: &str) -> Result<PathBuf, String> {
    let flags = ["--locked", "--profile", "dist", "--package", "aweigh-cli"];
    let name = format!("aweigh{}", env::consts::EXE_SUFFIX);
    if !cfg!(target_os = "linux") {
        // Windows has no C runtime for programs of its compiler until somebody installs it.
        let runtime = cfg!(windows).then_some(("RUSTFLAGS", "-C target-feature=+crt-static"));
        done(cargo().arg("build").args(flags).envs(runtime))?;
        return Ok(Path::new("target/dist").join(name));
    }
    let tools = zig(&[])?;
    let mut build = Command::new(program(&tools, "cargo-zigbuild"));
    build.arg("zigbuild").args(flags).arg(format!("--target={target}.{GLIBC}"));
    done(build.env("PATH", path_with(&tools, path_list("PATH"))?))?;
    Ok(Path::new("target").join(target).join("dist").join(name))
}

/// The target that rustc builds for without a flag.
fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output().map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".into())
}
