//! `aweigh export`: an adapter merged into a plain model directory.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::output::{Output, bytes};
use crate::config::TargetModules;
use crate::error::{Error, Result};
use crate::files::{AdapterFiles, Model, NewFolder};
use crate::gpu::DType;
use crate::model::{Adapter, AdapterBytes, ExportDType, merged};

/// Merge an adapter into a plain model directory.
///
/// The result is what transformers, llama.cpp's converter and others load without knowing of adapters.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a directory in Hugging Face's layout, or "tiny"
    #[arg(long, value_name = "DIR|GGUF|tiny")]
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

impl Dtype {
    /// What the weights become, with transformers' name for it; none where they stay as they are.
    fn forced(self) -> Option<(DType, &'static str)> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some((DType::F32, "float32")),
            Self::Float16 => Some((DType::F16, "float16")),
            Self::Bfloat16 => Some((DType::Bf16, "bfloat16")),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Figures {
    output: String,
    model: String,
    adapter: Option<String>,
    dtype: &'static str,
    /// Layers that the adapter changed.
    merged_layers: usize,
    /// Of model.safetensors.
    bytes: usize,
    /// The other files.
    files: Vec<String>,
}

/// Merges and writes.
///
/// # Errors
/// Whatever is wrong with the files; --output is then as it was.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let model = Model::open(&args.model, !output.quiet())?;
    let adapter = args.adapter.as_deref().map(|path| AdapterFiles::open(path, "--adapter")).transpose()?;
    let folder = NewFolder::create(&args.output, "--output")?;
    let adapter = adapter.as_ref().map(AdapterFiles::bytes);
    let adapter = adapter.as_ref().map(AdapterBytes::parse).transpose()?;
    let forced = args.dtype.forced();
    let dtype = forced.map_or(ExportDType::Auto, |(dtype, _)| ExportDType::As(dtype));
    let weights = merged(&model.bytes().weights()?, adapter.as_ref(), dtype)?;
    let others = model.write_companions(folder.path(), forced.map(|(_, name)| name))?;
    let path = folder.path().join("model.safetensors");
    fs::write(path, &weights).map_err(|error| Error::io(&args.output, "write", error))?;
    folder.commit()?;
    let figures = Figures {
        output: args.output.display().to_string(),
        model: args.model,
        adapter: args.adapter.map(|path| path.display().to_string()),
        dtype: forced.map_or("auto", |(_, name)| name),
        merged_layers: adapter.map_or(0, |adapter| layers(&adapter)),
        bytes: weights.len(),
        files: others,
    };
    let human = format!(
        "{}: model.safetensors, {}, with {} layers merged; {}",
        figures.output,
        bytes(figures.bytes as u64),
        figures.merged_layers,
        figures.files.join(", ")
    );
    output.result(human, &figures)
}

fn layers(adapter: &Adapter) -> usize {
    match &adapter.spec.target_modules {
        TargetModules::Names(names) => names.len(),
        TargetModules::AllLinear => 0,
    }
}
