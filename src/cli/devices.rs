//! `aweigh devices`: the adapters, and what each can do.

use super::output::Output;
use crate::error::Result;

/// List the GPUs that can be used.
///
/// The number in the first column, or a part of the name, is what --gpu takes.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  aweigh devices\n  aweigh devices --json")]
pub struct Args {}

/// Lists the adapters.
///
/// # Errors
/// [`crate::error::Error::NoAdapter`] where there is none.
pub fn run(_args: Args, _output: &Output) -> Result<()> {
    todo!("list the adapters")
}
