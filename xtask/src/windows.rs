//! DX12 and Windows, with Wine where this is not Windows.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::compilers::library;
use crate::tools::{cargo, run};

/// What programs for Windows are built for where this is not Windows.
pub const TARGET: &str = "x86_64-pc-windows-gnu";

/// Runs the tests of both packages on Windows, through Vulkan and through DX12; with Wine where this is not
/// Windows, and then with Microsoft's FXC beside the programs. The arguments go to `cargo test`.
pub fn windows(flags: &[String]) -> Result<ExitCode, String> {
    let target = (!cfg!(windows)).then_some(TARGET);
    if let Some(target) = target {
        let fxc = library("d3dcompiler_47.dll", None)?;
        let programs = Path::new("target").join(target).join("debug");
        for folder in [programs.clone(), programs.join("deps")] {
            fs::create_dir_all(&folder)
                .and_then(|()| fs::copy(&fxc, folder.join("d3dcompiler_47.dll")))
                .map_err(|error| format!("{}: {error}", folder.display()))?;
        }
    }
    let mut ended = ExitCode::SUCCESS;
    for backend in ["vulkan", "dx12"] {
        println!("\n== {backend}");
        let mut test = cargo();
        test.args(["test", "--no-fail-fast", "--package", "aweigh", "--package", "aweigh-app"]);
        test.args(["--package", "aweigh-cli"]);
        test.args(target.map(|target| format!("--target={target}"))).args(flags);
        test.env("WGPU_BACKEND", backend).env("WINEDLLOVERRIDES", "d3dcompiler_47=n");
        if target.is_some() {
            test.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", wine().get_program());
        }
        let code = run(&mut test);
        if code != ExitCode::SUCCESS {
            ended = code;
        }
    }
    Ok(ended)
}

/// Wine, with nothing to read. Its services keep the output open, so that must not be a pipe that somebody
/// waits for.
pub fn wine() -> Command {
    let mut command = Command::new(env::var_os("AWEIGH_WINE").unwrap_or_else(|| "wine".into()));
    command.stdin(Stdio::null());
    command
}
