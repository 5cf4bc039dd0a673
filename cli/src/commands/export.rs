//! `aweigh export`: merges an adapter and writes a plain model directory or a GGUF file.

use std::path::PathBuf;

use crate::terminal::output::Output;
use crate::terminal::text::bytes;
use aweigh::error::Result;
use aweigh_app::export::{Dtype, Export, GGUF, MODELFILE, is_file, write};

/// Merge an adapter into its model and write a plain model directory or a GGUF file.
///
/// transformers and other programs load the directory without adapter support; llama.cpp loads the GGUF file.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a directory in Hugging Face's layout, a GGUF file, a name
    /// on the Hugging Face Hub, or "tiny"
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny")]
    pub model: String,
    /// The adapter to merge: a directory in PEFT's format. Without it, the model alone is written
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Directory for the new model, or a file if the name ends in .gguf. It must not exist yet, and appears
    /// only when it is complete
    #[arg(long, short, value_name = "DIR|FILE.gguf")]
    pub output: PathBuf,
    /// Write the adapter alone, as a GGUF adapter: llama.cpp applies it to the model's own GGUF file
    /// (--lora), Ollama with ADAPTER in a Modelfile
    #[arg(long, requires = "adapter")]
    pub adapter_only: bool,
    /// Make --output a directory with model.gguf and a Modelfile for Ollama: chat template, stop tokens and
    /// sampling parameters (ollama create NAME -f Modelfile)
    #[arg(long, conflicts_with = "adapter_only")]
    pub modelfile: bool,
    /// Type of the written weights; merges are computed in f64
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
}

const EXAMPLES: &str = "\
Examples:
  aweigh export --model DIR --adapter run/adapter --output merged
  aweigh export --model DIR --adapter run/adapter --output merged.gguf --dtype q8_0
  aweigh export --model DIR --adapter run/adapter --adapter-only --output adapter.gguf
  aweigh export --model DIR --adapter run/adapter --modelfile --output for-ollama
  aweigh export --model tiny --output tiny-model --dtype float32";

/// Merges and writes.
///
/// # Errors
/// Invalid flags or files; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let (only, is_file, ollama) = (args.adapter_only, is_file(&args.output), args.modelfile);
    let Args { model, adapter, output: place, adapter_only, modelfile, dtype } = args;
    let export = Export { model, adapter, output: place, adapter_only, modelfile, dtype };
    let figures = write(export, output)?;
    let size = bytes(figures.bytes);
    let human = match is_file {
        true if only => {
            format!("{}: an adapter, {size} in {}", figures.output, figures.dtype)
        }
        true => format!(
            "{}: {size} in {}, {} layers merged",
            figures.output, figures.dtype, figures.merged_layers
        ),
        false if ollama => format!(
            "{0}: {GGUF}, {size} in {1}, {2} layers merged, and {MODELFILE}; next: ollama create NAME -f \
             {0}/{MODELFILE}",
            figures.output, figures.dtype, figures.merged_layers
        ),
        false => format!(
            "{}: model.safetensors, {size}, {} layers merged; other files: {}",
            figures.output,
            figures.merged_layers,
            figures.files.join(", ")
        ),
    };
    output.result(human, &figures)
}
