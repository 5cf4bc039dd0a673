//! The `aweigh` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(aweigh_cli::program::main(std::env::args_os()))
}
