//! The project's own commands; `cargo xtask` lists them. Commands that need a GPU first install a software
//! Vulkan driver if there is no driver.

mod archive;
mod macos;
mod python;
mod tools;
mod vulkan;
mod wheel;
mod windows;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tools::{cargo, run};

const USAGE: &str = "\
usage: cargo xtask demo [flags]    install a Vulkan driver if there is none, then run `aweigh demo`
       cargo xtask test [flags]    install a Vulkan driver if there is none, then test both packages
       cargo xtask check           run all checks of a change: .ci/run
       cargo xtask amd             print what AMD's compiler makes of the kernels, without a GPU
       cargo xtask fxc DLL         compile the kernels for DX12 with Microsoft's d3dcompiler_47.dll; with
                                   --checked as in a debug build
       cargo xtask dxc LIBRARY     the same with Microsoft's DXC
       cargo xtask windows FXC     run the tests on Windows or Wine, through Vulkan and DX12; FXC is
                                   d3dcompiler_47.dll
       cargo xtask macos           check the code for macOS, on any system
       cargo xtask wheel [TARGET]  build the Python package, and test it in an environment without Rust
       cargo xtask archive         build the archive of a release for this machine
       cargo xtask docs            write the documents that tests compare with the code
       cargo xtask fixtures        print how the files in tests/golden and assets/tiny were made";

/// Has the table of fixtures, which `cargo xtask fixtures` prints.
const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");

/// Tests that write a document instead of comparing it, with `AWEIGH_WRITE_DOCS=1`.
const WRITERS: [&[&str]; 4] = [
    &["test", "--package", "aweigh", "--test", "layers", "the_architecture"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "inputs::"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "the_tables_of_machines"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "the_charts_of_figures"],
];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let test: &[&str] = &["test", "--package", "aweigh", "--package", "aweigh-cli"];
    let amd: &[&str] = &["test", "--package", "aweigh", "--test", "amd", "--", "--nocapture"];
    let cargo_arguments = match arguments.next().as_deref() {
        Some("demo") => &["run", "--release", "--package", "aweigh-cli", "--", "demo"],
        Some("test") => test,
        Some("amd") => amd,
        Some("check") => return run(Command::new("bash").arg(".ci/run")),
        Some("fxc") => return windows::fxc(&arguments.collect::<Vec<_>>()),
        Some("windows") => return windows::windows(&arguments.collect::<Vec<_>>()),
        Some("dxc") => return windows::dxc(&arguments.collect::<Vec<_>>()),
        Some("archive") => return archive::archive(),
        Some("macos") => return macos::macos(),
        Some("wheel") => return wheel::wheel(arguments.next().as_deref()),
        Some("docs") => {
            let write = |arguments: &&[&str]| {
                run(cargo().args(*arguments).env("AWEIGH_WRITE_DOCS", "1")) == ExitCode::SUCCESS
            };
            return if WRITERS.iter().all(write) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some("fixtures") => {
            let table = CONTRIBUTING.lines().skip_while(|line| !line.starts_with("| files |"));
            table.take_while(|line| line.starts_with('|')).for_each(|line| println!("{line}"));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if cfg!(target_os = "linux")
        && let Err(message) = vulkan::ensure_vulkan()
    {
        eprintln!("xtask: {message}");
        return ExitCode::from(2);
    }
    let arguments: Vec<String> = arguments.collect();
    let mut command = cargo();
    command.args(cargo_arguments).args(&arguments);
    if cargo_arguments == amd {
        command.env("AWEIGH_AMD", "all");
    }
    let ended = run(&mut command);
    // Tests that need real files are ignored by default. With flags of the caller, only what was asked for
    // runs.
    match cargo_arguments == test && arguments.is_empty() && ended == ExitCode::SUCCESS {
        true => test_with_real_data(),
        false => ended,
    }
}

/// Runs the ignored tests that need real files, if the files are there.
fn test_with_real_data() -> ExitCode {
    let named = |variable: &str, default: &str| {
        let path = env::var_os(variable).map_or_else(|| default.into(), PathBuf::from);
        fs::canonicalize(path).ok().filter(|path| path.is_dir())
    };
    let Some(data) = named("AWEIGH_DATA", "../shared/data") else {
        eprintln!("xtask: tests with real data stay ignored: set AWEIGH_DATA to its folder");
        return ExitCode::SUCCESS;
    };
    let mut command = cargo();
    command.args(["test", "--package", "aweigh", "--package", "aweigh-cli", "--lib", "--test", "smollm2"]);
    command.args(["--", "--ignored", "shared_data"]).env("AWEIGH_DATA", &data);
    match named("AWEIGH_SMOLLM2", "../models/smollm2/hf").or_else(|| make_smollm2(&data)) {
        Some(model) => drop(command.arg("smollm2").env("AWEIGH_SMOLLM2", model)),
        None => eprintln!("xtask: tests with SmolLM2 stay ignored: set AWEIGH_SMOLLM2 to its folder"),
    }
    run(&mut command)
}

/// Makes SmolLM2 in target/ with the shared data's script, which needs Python and the network.
fn make_smollm2(data: &Path) -> Option<PathBuf> {
    let made = Path::new("target/smollm2");
    let script = data.join("get_smollm2.sh");
    let status = Command::new("sh").arg(script).arg(made).status();
    if !status.as_ref().is_ok_and(|status| status.success()) {
        return None;
    }
    fs::canonicalize(made.join("hf")).ok()
}
