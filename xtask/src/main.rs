//! The project's own commands; `cargo xtask` lists them. Commands that need a GPU first install a software
//! Vulkan driver if there is no driver.

mod archive;
mod clients;
mod compilers;
mod macos;
mod page;
mod python;
mod tools;
mod vulkan;
mod web;
mod wheel;
mod windows;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tools::{cargo, run};

const USAGE: &str = "\
usage: cargo xtask demo [flags]    install a Vulkan driver if there is none, then run `aweigh demo`
       cargo xtask test [flags]    install a Vulkan driver if there is none, then run the tests
       cargo xtask check           run all checks of a change: .ci/run
       cargo xtask amd             print what AMD's compiler makes of the kernels, without a GPU
       cargo xtask fxc [DLL]       compile the kernels for DX12 with Microsoft's d3dcompiler_47.dll, by
                                   default npm's; with --checked as in a debug build
       cargo xtask dxc [DLL]       the same with Microsoft's dxcompiler.dll
       cargo xtask metal           check the kernels' Metal with clang
       cargo xtask tint            compile the kernels' WGSL as Chromium does
       cargo xtask clients         try `aweigh serve` with OpenAI's own clients for Python and JavaScript
       cargo xtask datasets        compare how data is read with Hugging Face's datasets; with --write, also
                                   write the Parquet file that a test reads
       cargo xtask page            try the page of `aweigh app` in headless Chromium
       cargo xtask web             build the app for a browser's tab, into target/web; with --serve, also
                                   serve it; with --check [MODEL.gguf], try it in headless Chromium
       cargo xtask windows         run the tests on Windows or Wine, through Vulkan and DX12
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
    let name = arguments.next().unwrap_or_default();
    command(&name, &arguments.collect::<Vec<_>>()).unwrap_or_else(|message| {
        eprintln!("xtask: {message}");
        ExitCode::from(2)
    })
}

fn command(name: &str, arguments: &[String]) -> Result<ExitCode, String> {
    let done = |()| ExitCode::SUCCESS;
    match name {
        "demo" => {
            vulkan::ensure_vulkan()?;
            let demo = ["run", "--release", "--package", "aweigh-cli", "--", "demo"];
            Ok(run(cargo().args(demo).args(arguments)))
        }
        "test" => test(arguments),
        "amd" => {
            vulkan::ensure_vulkan()?;
            let amd = ["test", "--package", "aweigh", "--test", "amd", "--", "--nocapture"];
            Ok(run(cargo().args(amd).args(arguments).env("AWEIGH_AMD", "all")))
        }
        "check" => Ok(run(Command::new("bash").arg(".ci/run"))),
        "fxc" => compilers::fxc(arguments),
        "dxc" => compilers::dxc(arguments),
        "metal" => compilers::metal().map(done),
        "tint" => compilers::tint().map(done),
        "clients" => clients::clients().map(done),
        "datasets" => clients::datasets(arguments == ["--write"]).map(done),
        "page" => page::page().map(done),
        "web" => web::web(arguments).map(done),
        "windows" => windows::windows(arguments),
        "macos" => macos::macos().map(done),
        "wheel" => wheel::wheel(arguments.first().map(String::as_str)).map(done),
        "archive" => archive::archive().map(done),
        "docs" => WRITERS
            .iter()
            .try_for_each(|writer| tools::done(cargo().args(*writer).env("AWEIGH_WRITE_DOCS", "1")))
            .map(done),
        "fixtures" => {
            let table = CONTRIBUTING.lines().skip_while(|line| !line.starts_with("| files |"));
            table.take_while(|line| line.starts_with('|')).for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

/// Runs the tests of the library, the app and the program; without flags also those that need real files,
/// which are ignored by default.
fn test(flags: &[String]) -> Result<ExitCode, String> {
    vulkan::ensure_vulkan()?;
    let ended = run(cargo().args(["test"]).args(flags));
    let all = flags.is_empty() && ended == ExitCode::SUCCESS;
    Ok(if all { test_with_real_data() } else { ended })
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
