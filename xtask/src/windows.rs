//! DX12 and Windows, with Wine where this is not Windows.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::tools::{cargo, run};

/// What programs for Windows are built for where this is not Windows.
const TARGET: &str = "x86_64-pc-windows-gnu";

/// Where FXC is.
const FXC: &str = "give d3dcompiler_47.dll: Windows has it in System32; elsewhere it is in the npm package \
                   webgpu (`npm pack webgpu`), in package/dist/win32-x64";

/// What building for it needs.
const CROSS: &str =
    "rustup target add x86_64-pc-windows-gnu; on Debian also apt-get install gcc-mingw-w64-x86-64";

/// Runs the tests of both packages on Windows, through Vulkan and through DX12; with Wine where this is not
/// Windows. The first argument is FXC, which then lies beside the programs; the others go to `cargo test`.
pub fn windows(arguments: &[String]) -> ExitCode {
    let Some((fxc, flags)) = arguments.split_first().filter(|(path, _)| Path::new(path).is_file()) else {
        eprintln!("xtask: expected the path of d3dcompiler_47.dll\n  what to do: {FXC}");
        return ExitCode::from(2);
    };
    let target = (!cfg!(windows)).then_some(TARGET);
    let programs = Path::new("target").join(target.unwrap_or_default()).join("debug");
    for folder in [programs.clone(), programs.join("deps")] {
        let copied =
            fs::create_dir_all(&folder).and_then(|()| fs::copy(fxc, folder.join("d3dcompiler_47.dll")));
        if let Err(error) = copied {
            eprintln!("xtask: {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    let mut ended = ExitCode::SUCCESS;
    for backend in ["vulkan", "dx12"] {
        println!("\n== {backend}");
        let mut test = cargo();
        test.args(["test", "--no-fail-fast", "--package", "aweigh", "--package", "aweigh-cli"]);
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
    ended
}

/// Writes the kernels as HLSL for a compiler, and returns the folder.
fn hlsl(compiler: &str, checked: bool) -> Option<PathBuf> {
    let folder = env::current_dir().ok()?.join("target/hlsl");
    let _ = fs::remove_dir_all(&folder);
    let purpose = if checked { format!("{compiler} checked") } else { compiler.into() };
    let mut write = cargo();
    write.args(["test", "--package", "aweigh", "--test", "shaders", "variants_translate_to_hlsl"]);
    write.env("AWEIGH_HLSL", &folder).env("AWEIGH_HLSL_FOR", purpose);
    (run(&mut write) == ExitCode::SUCCESS).then_some(folder)
}

/// Compiles all kernels with FXC (those that need no feature beyond shader model 5.1).
pub fn fxc(arguments: &[String]) -> ExitCode {
    compile("fxc", arguments, FXC)
}

/// Compiles all kernels with DXC.
pub fn dxc(arguments: &[String]) -> ExitCode {
    let fix = "give dxcompiler.dll, which is in the npm package webgpu (`npm pack webgpu`), in \
               package/dist/win32-x64";
    compile("dxc", arguments, fix)
}

/// Compiles all kernels with the program `compiler` and the library that the arguments name, with Wine where
/// this is not Windows. `--checked` compiles them as in a debug build.
fn compile(compiler: &str, arguments: &[String], fix: &str) -> ExitCode {
    let checked = arguments.get(1).is_some_and(|flag| flag == "--checked");
    let path = arguments.first().filter(|_| arguments.len() == 1 + usize::from(checked));
    let Some(library) = path.and_then(|path| fs::canonicalize(path).ok()) else {
        eprintln!("xtask: expected the path of the compiler's library\n  what to do: {fix}");
        return ExitCode::from(2);
    };
    let Some(folder) = hlsl(compiler, checked) else { return ExitCode::FAILURE };
    let target = (!cfg!(windows)).then_some(TARGET);
    let mut build = cargo();
    build.args(["build", "--package", "xtask", "--bin", compiler]);
    build.args(target.map(|target| format!("--target={target}")));
    if run(&mut build) != ExitCode::SUCCESS {
        eprintln!("xtask: {compiler} was not built\n  what to do: {CROSS}");
        return ExitCode::FAILURE;
    }
    let program = Path::new("target").join(target.unwrap_or_default()).join(format!("debug/{compiler}.exe"));
    let Ok(program) = fs::canonicalize(program) else { return ExitCode::FAILURE };
    let mut command = if target.is_some() { wine() } else { Command::new(&program) };
    // Wine would take its own compiler, which cannot compile these texts.
    command.env("WINEDLLOVERRIDES", "d3dcompiler_47=n");
    command.args(target.map(|_| &program)).arg(library).arg(folder).args(checked.then_some("checked"));
    run(&mut command)
}

/// Wine, with nothing to read. Its services keep the output open, so that must not be a pipe that somebody
/// waits for.
fn wine() -> Command {
    let mut command = Command::new(env::var_os("AWEIGH_WINE").unwrap_or_else(|| "wine".into()));
    command.stdin(Stdio::null());
    command
}
