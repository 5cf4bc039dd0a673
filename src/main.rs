//! The `aweigh` program: logging, the command line, exit codes.

use std::io::ErrorKind;
use std::process::ExitCode;

use aweigh::error::Error;
use clap::Parser;

fn main() -> ExitCode {
    // wgpu's own warnings are for its users' developers, and what the Vulkan loader says of missing drivers we say ourselves;
    // RUST_LOG brings them back.
    let quiet = "warn,wgpu_core=error,wgpu_hal=error,wgpu_hal::vulkan::instance=off,naga=error";
    let filter = env_logger::Env::default().default_filter_or(quiet);
    env_logger::Builder::from_env(filter).init();
    // Wrong flags leave here, with exit code 2 like every other wrong input.
    match aweigh::cli::run(aweigh::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough, as in `aweigh score ... | head`.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
