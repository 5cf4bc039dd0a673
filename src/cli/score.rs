//! `aweigh score`: log-probs of given answers.

use std::path::PathBuf;

use super::args::{GpuArgs, ModelArgs, at_least_one};
use crate::files::{Source, refuse_existing};
use crate::files::{AdapterFiles, Model};
use super::output::Output;
use crate::error::{Error, Result};

/// Log-probs of the answers of a file.
///
/// Every row comes out again with "logp", the sum of the log-probs of the answer's tokens in nats, and "num_tokens", their
/// number; both with the end-of-turn token. A row with "chosen" and "rejected" gets both figures for each.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The answers: JSONL (.gz too) with prompt + completion, or prompt + chosen + rejected, a line
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Use only the rows whose "split" field is this
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub split: Option<String>,
    /// Use at most this many rows, the first ones
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_samples: Option<usize>,
    /// Most packed tokens that go through the model together. Lower it when memory runs out
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, help_heading = "Data")]
    pub max_tokens_per_batch: usize,
    /// Where the rows go; without it to stdout. The file appears when all of them are there
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Replace --output if it exists
    #[arg(long, requires = "output", help_heading = "Output")]
    pub overwrite: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh score --model DIR --data answers.jsonl > scored.jsonl
  aweigh score --model DIR --adapter run/adapter --data held-out.jsonl --json --output scored.jsonl";

/// Scores answers.
///
/// # Errors
/// Whatever is wrong with the flags, the files or the GPU; --output is then as it was.
pub fn run(args: Args, output: &Output) -> Result<()> {
    at_least_one("--max-samples", args.max_samples.unwrap_or(1))?;
    at_least_one("--max-tokens-per-batch", args.max_tokens_per_batch)?;
    match &args.output {
        Some(path) => refuse_existing(path, "--output", args.overwrite)?,
        None if output.json() => {
            let fix = "add --output FILE: with --json stdout holds the figures";
            return Err(Error::input("--output", "a file for the rows", "none", fix));
        }
        None => {}
    }
    let _rows = Source::read(&args.data, "--data")?;
    let _model = Model::open(&args.model.model)?;
    let _adapter =
        args.model.adapter.as_deref().map(|path| AdapterFiles::open(path, "--adapter")).transpose()?;
    todo!("score, then rows to WholeFile or Output::text, figures to Output::result")
}
