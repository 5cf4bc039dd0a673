//! `aweigh selftest`: does this GPU compute what it should?

use super::args::GpuArgs;
use super::output::Output;
use crate::error::Result;

/// Check every kernel on this GPU against a reference in double precision.
///
/// Every kernel, forward and backward, and the gradients of a small model are compared with the same formulas in double
/// precision on the CPU. The verdict says whether this GPU and its driver can be trusted. Exit code 1 says that they cannot.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only the smallest shapes: seconds instead of a minute on a software adapter
    #[arg(long)]
    pub quick: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh selftest
  aweigh selftest --quick --gpu llvmpipe --json";

/// Tests.
///
/// # Errors
/// [`crate::error::Error::NoAdapter`], or [`crate::error::Error::Gpu`] for a kernel that is wrong.
pub fn run(_args: Args, _output: &Output) -> Result<()> {
    todo!("run the checks, print a table, give the verdict")
}
