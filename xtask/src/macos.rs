//! macOS as far as another system can check it: the code compiles for it, without a warning.

use std::process::Command;

use crate::python::{path_with, program, zig};
use crate::tools::{done, path_list};

/// Apple silicon and Intel.
const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "x86_64-apple-darwin"];

/// Runs clippy on the library, the app and the program, tests included, for macOS. Nothing is linked, which
/// would need Apple's SDK; zig compiles the C code of dependencies.
pub fn macos() -> Result<(), String> {
    let tools = zig(&[])?;
    done(Command::new("rustup").args(["target", "add"]).args(TARGETS))?;
    TARGETS.into_iter().try_for_each(|target| {
        println!("\n== {target}");
        let mut clippy = Command::new(program(&tools, "cargo-zigbuild"));
        clippy.args(["clippy", "--package", "aweigh", "--package", "aweigh-app", "--package", "aweigh-cli"]);
        clippy.arg("--all-targets");
        clippy.arg(format!("--target={target}")).args(["--", "-D", "warnings"]);
        done(clippy.env("PATH", path_with(&tools, path_list("PATH"))?))
    })
}
