//! `aweigh export`: an adapter merged into a plain model directory.

use std::path::PathBuf;

use crate::files::NewFolder;
use crate::files::{AdapterFiles, Model};
use super::output::Output;
use crate::error::Result;

/// Merge an adapter into a plain model directory.
///
/// The result is what transformers, llama.cpp's converter and others load without knowing of adapters.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a directory in Hugging Face's layout, or "tiny"
    #[arg(long, value_name = "DIR|tiny")]
    pub model: String,
    /// The adapter to merge, a directory in PEFT's format. Without it the model is only written out
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The new model's directory, which must not exist. It appears when it is complete
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// The type of the weights written; a merge is computed in f32 and rounded once
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
}

/// The type of written weights, with transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// Each weight as the model has it
    Auto,
    /// 32 bits
    Float32,
    /// 16 bits, 5 of them exponent
    Float16,
    /// 16 bits, 8 of them exponent
    Bfloat16,
}

const EXAMPLES: &str = "\
Examples:
  aweigh export --model DIR --adapter run/adapter --output merged
  aweigh export --model tiny --output tiny-model --dtype float32";

/// Merges and writes.
///
/// # Errors
/// Whatever is wrong with the files; --output is then as it was.
pub fn run(args: Args, _output: &Output) -> Result<()> {
    let _model = Model::open(&args.model)?;
    let _adapter = args.adapter.as_deref().map(|path| AdapterFiles::open(path, "--adapter")).transpose()?;
    let _folder = NewFolder::create(&args.output, "--output")?;
    todo!("merge, write into NewFolder::path, NewFolder::commit")
}
