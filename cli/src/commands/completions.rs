//! `aweigh completions` and `aweigh man`: what shells and `man` show of the program.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Cli;
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};

/// Print the completions of a shell.
///
/// The shell then completes commands, flags and their values.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aweigh completions bash > ~/.local/share/bash-completion/completions/aweigh
  aweigh completions zsh > ~/.zfunc/_aweigh
  aweigh completions fish > ~/.config/fish/completions/aweigh.fish
  aweigh completions powershell | Out-String | Invoke-Expression   # a line for $PROFILE")]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// [`Error::Io`] when stdout cannot be written to.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "aweigh", &mut text);
    let text = String::from_utf8_lossy(&text);
    output.result(&text, &serde_json::json!({ "completions": text }))
}

/// Write the program's manual pages.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aweigh man --output-dir ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder for aweigh.1 and a page for each command; earlier pages are replaced
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
}

/// Writes the pages.
///
/// # Errors
/// [`Error::Io`].
pub fn man(args: ManArgs, output: &Output) -> Result<()> {
    let folder = &args.output_dir;
    std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(|error| Error::io(folder, "write", error))?;
    output.result(
        format_args!("pages written to {}", folder.display()),
        &serde_json::json!({ "output_dir": folder }),
    )
}
