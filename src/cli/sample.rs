//! `aweigh sample`: answers to the prompts of a file.

use std::path::PathBuf;

use super::args::{GpuArgs, ModelArgs, SamplingArgs, at_least_one};
use crate::files::{Source, refuse_existing};
use crate::files::{AdapterFiles, Model};
use super::output::Output;
use crate::error::Result;

/// Sample answers to the prompts of a file.
///
/// The prompts are those of any of align's files (JSONL, .gz too); answers in it are ignored. One line is written for each
/// answer: its prompt, its text, its log-prob, and whether it ended by itself. align takes the file as --samples-file.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompts: JSONL (.gz too) with a "prompt" a line, a string or a list of messages
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Use only the rows whose "split" field is this
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub split: Option<String>,
    /// Use at most this many prompts, the first ones
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_samples: Option<usize>,
    /// Prompts longer than this many tokens lose their beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 512, help_heading = "Data")]
    pub max_prompt_length: usize,
    /// Answers for each prompt
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Sampling")]
    pub num_samples: usize,
    /// A system message for every prompt, as align's anchors have it
    #[arg(long, visible_alias = "system", value_name = "TEXT", help_heading = "Sampling")]
    pub safety_instruction: Option<String>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where the answers go, as JSONL. The file appears when all of them are there
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: PathBuf,
    /// Replace --output if it exists
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh sample --model DIR --data prompts.jsonl --output answers.jsonl
  aweigh sample --model DIR --adapter run/adapter --data prompts.jsonl --temperature 0 --output greedy.jsonl
  aweigh sample --model DIR --data flagged.jsonl --num-samples 11 --system \"Be careful.\" --output anchors.jsonl";

/// Samples answers.
///
/// # Errors
/// Whatever is wrong with the flags, the files or the GPU; --output is then as it was.
pub fn run(args: Args, _output: &Output) -> Result<()> {
    args.sampling.check()?;
    at_least_one("--num-samples", args.num_samples)?;
    at_least_one("--max-prompt-length", args.max_prompt_length)?;
    at_least_one("--max-samples", args.max_samples.unwrap_or(1))?;
    refuse_existing(&args.output, "--output", args.overwrite)?;
    let _prompts = Source::read(&args.data, "--data")?;
    let _model = Model::open(&args.model.model)?;
    let _adapter =
        args.model.adapter.as_deref().map(|path| AdapterFiles::open(path, "--adapter")).transpose()?;
    todo!("sample, then write the rows with files::WholeFile")
}
