//! The `aweigh` program: logging, the command line, exit codes.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use aweigh::error::Error;
use aweigh_cli::Cli;
use aweigh_cli::terminal::text::to_stderr;
use clap::Parser;

fn main() -> ExitCode {
    without_device_select();
    // wgpu's warnings are meant for developers, and Aweigh reports missing drivers itself, so the Vulkan
    // loader's messages are hidden. RUST_LOG shows both.
    let quiet = "warn,wgpu_core=error,wgpu_hal=error,wgpu_hal::vulkan::instance=off,naga=error";
    let filter = env_logger::Env::default().default_filter_or(quiet);
    env_logger::Builder::from_env(filter).init();
    let arguments: Vec<OsString> = std::env::args_os().map(plain_number).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Invalid flags exit here with code 2, like other invalid input; --help and --version exit with 0.
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
        // The reader of stdout has closed it, as in `aweigh score ... | head`.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // A failed selftest has already printed its figures, failures included; stdout holds one object.
            if json && !matches!(error, Error::SelfTest { .. }) {
                say(error.to_json());
            }
            to_stderr(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints a line to stdout. A closed stdout is ignored: the exit code still reports the error.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Turns off Mesa's device-select layer, which asks Wayland for the default GPU and prints errors if there is
/// no desktop session. Aweigh chooses the GPU itself.
fn without_device_select() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Rewrites a negative number without an exponent: clap would take `-3e-5` for a flag.
fn plain_number(argument: OsString) -> OsString {
    let text = argument.to_str().filter(|text| text.starts_with('-') && text.contains(['e', 'E']));
    let number = text.and_then(|text| text.parse::<f64>().ok());
    match number {
        Some(number) if number.is_finite() => number.to_string().into(),
        _ => argument,
    }
}
