//! What the commands share: cargo, processes, PATH.

use std::env;
use std::path::PathBuf;
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
