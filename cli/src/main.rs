//! The `aweigh` program: logging, the command line, exit codes.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use aweigh::error::Error;
use aweigh_cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    without_device_select();
    // wgpu's own warnings are for its users' developers, and what the Vulkan loader says of missing drivers
    // we say ourselves; RUST_LOG brings them back.
    let quiet = "warn,wgpu_core=error,wgpu_hal=error,wgpu_hal::vulkan::instance=off,naga=error";
    let filter = env_logger::Env::default().default_filter_or(quiet);
    env_logger::Builder::from_env(filter).init();
    let arguments: Vec<OsString> = std::env::args_os().map(plain_number).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Wrong flags leave here, with exit code 2 like every other wrong input; and so do --help and
        // --version, with 0.
        Err(error) => {
            if json && error.exit_code() != 0 {
                let message = error.render().to_string();
                let message = message.trim_start_matches("error: ").trim_end();
                say(serde_json::json!({ "error": { "message": message, "exit_code": error.exit_code() } }));
            }
            error.exit()
        }
    };
    match aweigh_cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough, as in `aweigh score ... | head`.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // A failed selftest has printed its figures, which name the failures: stdout holds one object.
            if json && !matches!(error, Error::SelfTest { .. }) {
                say(error.to_json());
            }
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints a line. That nobody reads it any more is no error: the exit code tells the same.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Mesa's layer that chooses a default GPU asks Wayland for it, and where there is no session that prints
/// errors of its own. Aweigh chooses for itself.
fn without_device_select() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Safety: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// A negative number with an exponent as the parser knows numbers, without one: it takes `-3e-5` for a flag.
fn plain_number(argument: OsString) -> OsString {
    let text = argument.to_str().filter(|text| text.starts_with('-') && text.contains(['e', 'E']));
    let number = text.and_then(|text| text.parse::<f64>().ok());
    match number {
        Some(number) if number.is_finite() => number.to_string().into(),
        _ => argument,
    }
}
