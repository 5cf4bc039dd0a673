//! The program: logging, the command line, exit codes. `main.rs` and the Python package call it.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

use aweigh::error::Error;
use clap::Parser;

use crate::Cli;
use crate::terminal::text::to_stderr;

/// Runs the program with its arguments, of which the first is its name. Returns the exit code. Call it once
/// in a process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    without_device_select();
    log_to_stderr();
    let arguments: Vec<OsString> = arguments.into_iter().map(plain_number).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Invalid flags end with code 2, like other invalid input; --help and --version with 0.
        Err(error) => {
            if json && error.exit_code() != 0 {
                let message = error.render().to_string();
                let message = message.trim_start_matches("error: ").trim_end();
                say(serde_json::json!({ "error": { "message": message, "exit_code": error.exit_code() } }));
            }
            // A closed stdout or stderr is ignored: the exit code still tells.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    match crate::run(cli) {
        Ok(()) => 0,
        // The reader of stdout has closed it, as in `aweigh score ... | head`.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            // Figures that show a failure are printed already; stdout holds one object.
            if json && !matches!(error, Error::SelfTest { .. } | Error::AboveLimit { .. }) {
                say(error.to_json());
            }
            to_stderr(format_args!("error: {error}"));
            error.exit_code()
        }
    }
}

/// Logs to stderr, as `RUST_LOG` says. wgpu's warnings are meant for developers, and Aweigh reports missing
/// drivers itself, so the messages of Vulkan's loader, of EGL and of DXGI are hidden without `RUST_LOG`.
pub fn log_to_stderr() {
    let quiet = "warn,wgpu_core=error,wgpu_hal=error,naga=error,wgpu_hal::vulkan::instance=off,\
                 wgpu_hal::gles::egl=off,wgpu_hal::auxil::dxgi=off";
    let filter = env_logger::Env::default().default_filter_or(quiet);
    // Another part of this process may have a logger already.
    let _ = env_logger::Builder::from_env(filter).try_init();
}

/// Prints a line to stdout. A closed stdout is ignored: the exit code still reports the error.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Turns off Mesa's device-select layer, which asks Wayland for the default GPU and prints errors if there is
/// no desktop session. Aweigh chooses the GPU itself. Call it before other threads run.
pub fn without_device_select() {
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
