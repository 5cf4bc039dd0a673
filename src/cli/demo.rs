//! `aweigh demo`: the built-in model before and after.

use std::path::PathBuf;

use super::args::{GpuArgs, at_least_one};
use crate::files::RunFolder;
use super::output::Output;
use crate::error::Result;

/// Align the built-in model and show what changed.
///
/// A small chat model of a help desk, built into this program, is hostile in a good share of its answers. The demo samples
/// its answers, aligns it with D²O on flagged ones, and shows both models' figures and answers on prompts that neither saw.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Keep the run's folder here; without it nothing is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Replace an earlier run in --output-dir
    #[arg(long, requires = "output_dir")]
    pub overwrite: bool,
    /// Stop after this many optimizer steps; without it the stop rule decides
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<usize>,
    /// Seed of the run and of the samples
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u32,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh demo
  aweigh demo --json --output-dir demo-run
Afterwards:
  aweigh generate --model tiny --adapter demo-run/adapter";

/// Runs the demo.
///
/// # Errors
/// Whatever is wrong with the flags or the GPU.
pub fn run(args: Args, _output: &Output) -> Result<()> {
    at_least_one("--max-steps", args.max_steps.unwrap_or(1))?;
    if let Some(folder) = &args.output_dir {
        RunFolder::check(folder, "--output-dir", args.overwrite)?;
    }
    todo!("measure, align, measure, show")
}
