//! What the commands share: cargo, processes, PATH.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The cargo that runs this program, so that the toolchain stays the same.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Without a desktop session, Mesa's device-select layer looks for Wayland and prints errors about it.
        command.env("NODEVICE_SELECT", "1");
    }
    command
}

/// Runs a command and returns its exit code.
pub fn run(command: &mut Command) -> ExitCode {
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

/// Runs a command that must succeed.
pub fn done(command: &mut Command) -> Result<(), String> {
    let shown = format!("{} failed", command.get_program().display());
    if run(command) == ExitCode::SUCCESS { Ok(()) } else { Err(shown) }
}

/// The entries of a variable such as PATH.
pub fn path_list(variable: &str) -> Vec<PathBuf> {
    let value = env::var_os(variable).unwrap_or_default();
    env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// Whether PATH has this program.
pub fn is_on_path(program: &str) -> bool {
    path_list("PATH").iter().any(|folder| folder.join(program).is_file())
}

/// Downloads a package of npm's, `name` with its version, and returns the folder of `package`.
pub fn npm(name: &str, package: &str) -> Result<PathBuf, String> {
    // A folder for each: npm removes what it was not asked for.
    let folder = Path::new("target/tools/npm").join(package.replace(['@', '/'], "-"));
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut install = Command::new(npm);
    install.args(["install", "--no-save", "--silent", "--prefix"]).arg(&folder).arg(name);
    done(&mut install).map_err(|error| format!("{error}\n  what to do: install Node.js with npm"))?;
    let package = folder.join("node_modules").join(package);
    fs::canonicalize(&package).map_err(|error| format!("{}: {error}", package.display()))
}
