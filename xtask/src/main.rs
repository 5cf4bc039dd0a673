//! The project's own commands; `cargo xtask` lists them. Commands that need a GPU first install a software
//! Vulkan driver if there is no driver.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask demo [flags]    install a Vulkan driver if there is none, then run `aweigh demo`
       cargo xtask test [flags]    install a Vulkan driver if there is none, then test both packages
       cargo xtask check           run all checks of a change: .ci/run
       cargo xtask amd             print what AMD's compiler makes of the kernels, without a GPU
       cargo xtask fxc DLL         compile the kernels for DX12 with Microsoft's d3dcompiler_47.dll
       cargo xtask docs            write the documents that tests compare with the code
       cargo xtask fixtures        print how the files in tests/golden and assets/tiny were made";

/// Has the table of fixtures, which `cargo xtask fixtures` prints.
const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");

/// Tests that write a document instead of comparing it, with `AWEIGH_WRITE_DOCS=1`.
const WRITERS: [&[&str]; 4] = [
    &["test", "--package", "aweigh", "--test", "layers", "the_architecture"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "inputs::"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "the_table_of_machines"],
    &["test", "--package", "aweigh-cli", "--test", "cli", "the_charts_of_figures"],
];

/// The Vulkan loader and Mesa's drivers, which include llvmpipe.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let test: &[&str] = &["test", "--package", "aweigh", "--package", "aweigh-cli"];
    let amd: &[&str] = &["test", "--package", "aweigh", "--test", "amd", "--", "--nocapture"];
    let cargo_arguments = match arguments.next().as_deref() {
        Some("demo") => &["run", "--release", "--package", "aweigh-cli", "--", "demo"],
        Some("test") => test,
        Some("amd") => amd,
        Some("check") => return run(Command::new("bash").arg(".ci/run")),
        Some("fxc") => return fxc(arguments.next()),
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
        && let Err(message) = ensure_vulkan()
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

/// Compiles all kernels that need no feature beyond shader model 5.1 with FXC, with Wine where this is not
/// Windows. `AWEIGH_WINE` names the command, `wine` without it.
fn fxc(library: Option<String>) -> ExitCode {
    let Some(library) = library.as_deref().and_then(|path| fs::canonicalize(path).ok()) else {
        eprintln!(
            "xtask: expected the path of d3dcompiler_47.dll\n  what to do: Windows has it in System32; \
             elsewhere it is in the npm package webgpu (`npm pack webgpu`), in package/dist/win32-x64"
        );
        return ExitCode::from(2);
    };
    let Ok(root) = env::current_dir() else { return ExitCode::FAILURE };
    let folder = root.join("target/hlsl");
    let _ = fs::remove_dir_all(&folder);
    let mut write = cargo();
    write.args(["test", "--package", "aweigh", "--test", "shaders", "variants_translate_to_hlsl"]);
    if run(write.env("AWEIGH_HLSL", &folder)) != ExitCode::SUCCESS {
        return ExitCode::FAILURE;
    }
    let target = (!cfg!(windows)).then_some("x86_64-pc-windows-gnu");
    let mut build = cargo();
    build.args(["build", "--package", "xtask", "--bin", "fxc"]);
    build.args(target.map(|target| format!("--target={target}")));
    if run(&mut build) != ExitCode::SUCCESS {
        let fix = "rustup target add x86_64-pc-windows-gnu, and install gcc-mingw-w64-x86-64";
        eprintln!("xtask: the program for Windows was not built; on Debian: {fix}");
        return ExitCode::FAILURE;
    }
    let program = root.join("target").join(target.unwrap_or_default()).join("debug/fxc.exe");
    let mut command = match target {
        Some(_) => Command::new(env::var_os("AWEIGH_WINE").unwrap_or_else(|| "wine".into())),
        None => Command::new(&program),
    };
    // Wine would take its own compiler, which cannot compile these texts.
    command.env("WINEDLLOVERRIDES", "d3dcompiler_47=n");
    command.args(target.map(|_| &program)).arg(library).arg(folder);
    // Wine's services keep the output open, so it must not be a pipe that somebody waits for.
    run(command.stdin(std::process::Stdio::null()))
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

/// The cargo that runs this program, so that the toolchain stays the same.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Without a desktop session, Mesa's device-select layer looks for Wayland and prints errors about it.
        command.env("NODEVICE_SELECT", "1");
    }
    command
}

/// Runs a command and returns its exit code.
fn run(command: &mut Command) -> ExitCode {
    match command.status() {
        Ok(status) => {
            status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!("xtask: cannot start {}: {error}", command.get_program().display());
            ExitCode::FAILURE
        }
    }
}

/// Installs a software Vulkan driver if there is no driver that can work.
fn ensure_vulkan() -> Result<(), String> {
    let Some(missing) = missing_vulkan() else { return Ok(()) };
    eprintln!("xtask: {missing}; installing {}", PACKAGES.join(" and "));
    install(&PACKAGES).map_err(|reason| {
        format!(
            "{missing}, and installing one failed: {reason}\n  what to do: install a Vulkan driver by hand; \
             for a machine without a GPU, Mesa's llvmpipe (Debian, Ubuntu: {}; Fedora: mesa-vulkan-drivers; \
             Arch: vulkan-swrast)",
            PACKAGES.join(" ")
        )
    })?;
    match missing_vulkan() {
        None => Ok(()),
        Some(still) => Err(format!("{} are installed, but {still}", PACKAGES.join(" and "))),
    }
}

/// Why there can be no adapter here; `None` if there can be one.
fn missing_vulkan() -> Option<String> {
    if !has_loader() {
        return Some("there is no Vulkan loader (libvulkan.so.1)".into());
    }
    let drivers = drivers();
    if drivers.is_empty() {
        return Some("there is no Vulkan driver".into());
    }
    // Packages also install drivers for GPUs that are not present: without a GPU, only a software one works.
    (!has_gpu() && !drivers.iter().any(|driver| is_software(driver)))
        .then(|| "there is no GPU, and no software Vulkan driver".into())
}

/// Whether the dynamic linker can find the Vulkan loader.
fn has_loader() -> bool {
    let name = "libvulkan.so.1";
    let cached = |program: &str| {
        let output = Command::new(program).arg("-p").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(name))
    };
    let mut folders: Vec<PathBuf> = path_list("LD_LIBRARY_PATH");
    folders.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"].map(PathBuf::from));
    folders.push(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH).into());
    cached("ldconfig") || cached("/sbin/ldconfig") || folders.iter().any(|folder| folder.join(name).exists())
}

/// The driver manifests that the loader reads.
fn drivers() -> Vec<PathBuf> {
    let named: Vec<PathBuf> =
        ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().flat_map(|name| path_list(name)).collect();
    // Either variable replaces the default search. An entry is a file or a folder.
    let places = if named.is_empty() { default_places() } else { named };
    places.iter().flat_map(|place| manifests(place)).collect()
}

fn default_places() -> Vec<PathBuf> {
    let mut bases =
        vec![PathBuf::from("/etc"), "/usr/local/etc".into(), "/usr/share".into(), "/usr/local/share".into()];
    bases.extend(path_list("XDG_DATA_DIRS"));
    bases.extend(env::var_os("XDG_DATA_HOME").map(PathBuf::from));
    if let Some(home) = env::var_os("HOME").map(PathBuf::from) {
        bases.extend([home.join(".local/share"), home.join(".config")]);
    }
    bases.into_iter().map(|base| base.join("vulkan/icd.d")).collect()
}

fn manifests(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.into()];
    }
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect()
}

/// llvmpipe's ("lvp") or SwiftShader's manifest.
fn is_software(driver: &Path) -> bool {
    let name = driver.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    ["lvp", "swiftshader", "llvmpipe"].iter().any(|part| name.contains(part))
}

/// Whether the system shows a device that a hardware driver could open (the last is WSL's).
fn has_gpu() -> bool {
    let render = fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    render.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("renderD"))
        || ["/dev/nvidia0", "/dev/dxg"].iter().any(|device| Path::new(device).exists())
}

fn path_list(variable: &str) -> Vec<PathBuf> {
    let value = env::var_os(variable).unwrap_or_default();
    env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// `apt-get install`, through sudo if the user is not root.
fn install(packages: &[&str]) -> Result<(), String> {
    if !is_on_path("apt-get") {
        return Err("this system has no apt-get".into());
    }
    // If the list of packages cannot be updated, the old list is often new enough: this failure alone is no
    // reason to give up.
    if let Err(reason) = apt_get(&["update", "--quiet"]) {
        eprintln!("xtask: {reason}; going on");
    }
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else if is_on_path("sudo") {
        let mut command = Command::new("sudo");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    } else {
        return Err("it needs root, and there is no sudo".into());
    };
    let shown = format!("apt-get {}", arguments.join(" "));
    let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` ended with {status}")),
        Err(error) => Err(format!("`{shown}` did not start: {error}")),
    }
}

/// From `id -u`: the standard library has no function for it.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn is_on_path(program: &str) -> bool {
    path_list("PATH").iter().any(|folder| folder.join(program).is_file())
}
