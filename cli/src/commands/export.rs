//! `aweigh export`: an adapter merged into a plain model directory, or a GGUF file.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::open;
use crate::terminal::output::Output;
use crate::terminal::text::bytes;
use aweigh::error::{Error, Result};
use aweigh::files::{AdapterFiles, Model, NewFolder, WholeFile};
use aweigh::gpu::DType;
use aweigh::model::TargetModules;
use aweigh::model::gguf::Kind;
use aweigh::model::{Adapter, AdapterBytes, ExportDType, ModelBytes, merged, write_gguf};

/// Merge an adapter into a plain model directory, or a GGUF file.
///
/// A directory is what transformers and others load without knowing of adapters, a GGUF file what llama.cpp
/// does.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a directory in Hugging Face's layout, a GGUF file, a name
    /// on the Hugging Face Hub, or "tiny"
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny")]
    pub model: String,
    /// The adapter to merge, a directory in PEFT's format. Without it the model is only written out
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The new model's directory, or with the ending .gguf its file, which must not exist. It appears when it
    /// is complete
    #[arg(long, short, value_name = "DIR|FILE.gguf")]
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
    /// 8 bits in blocks of 32; only in a GGUF file
    #[value(name = "q8_0")]
    Q8_0,
}

const EXAMPLES: &str = "\
Examples:
  aweigh export --model DIR --adapter run/adapter --output merged
  aweigh export --model DIR --adapter run/adapter --output merged.gguf --dtype q8_0
  aweigh export --model tiny --output tiny-model --dtype float32";

impl Dtype {
    /// What the weights become, with transformers' name for it; none where they stay as they are.
    fn forced(self) -> Option<(DType, &'static str)> {
        match self {
            Self::Float32 => Some((DType::F32, "float32")),
            Self::Float16 => Some((DType::F16, "float16")),
            Self::Bfloat16 => Some((DType::Bf16, "bfloat16")),
            Self::Auto | Self::Q8_0 => None,
        }
    }

    /// A GGUF file's kind of matrices; the model's own embedding decides where it is left to.
    fn kind(self, model: &ModelBytes) -> Result<Kind> {
        Ok(match self {
            Self::Float32 => Kind::F32,
            Self::Float16 => Kind::F16,
            Self::Bfloat16 => Kind::Bf16,
            Self::Q8_0 => Kind::Q8_0,
            Self::Auto => {
                let config = model.decoder_config()?;
                let shape = [config.vocab, config.width];
                match model.weights()?.get("model.embed_tokens.weight", &shape).map(|stored| stored.dtype) {
                    Ok(DType::F32) => Kind::F32,
                    Ok(DType::Bf16) => Kind::Bf16,
                    _ => Kind::F16,
                }
            }
        })
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
    /// Of model.safetensors, or of the file.
    bytes: u64,
    /// The other files.
    files: Vec<String>,
}

/// Merges and writes.
///
/// # Errors
/// Whatever is wrong with the files; --output is then as it was.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let model = open::model(&args.model, true, output)?;
    let adapter = args.adapter.as_deref();
    let adapter = adapter.map(|path| open::adapter(path, "--adapter", &model, output)).transpose()?;
    let adapter = adapter.as_ref().map(AdapterFiles::bytes);
    let adapter = adapter.as_ref().map(AdapterBytes::parse).transpose()?;
    let is_file = args.output.extension().is_some_and(|ending| ending == "gguf");
    let written = if is_file {
        file(&args, &model, adapter.as_ref())?
    } else {
        directory(&args, &model, adapter.as_ref())?
    };
    let figures = Figures {
        output: args.output.display().to_string(),
        model: args.model,
        adapter: args.adapter.map(|path| path.display().to_string()),
        dtype: written.dtype,
        merged_layers: adapter.map_or(0, |adapter| layers(&adapter)),
        bytes: written.bytes,
        files: written.others,
    };
    let size = bytes(figures.bytes);
    let human = match is_file {
        true => format!(
            "{}: {size} of {}, with {} layers merged",
            figures.output, figures.dtype, figures.merged_layers
        ),
        false => format!(
            "{}: model.safetensors, {size}, with {} layers merged; {}",
            figures.output,
            figures.merged_layers,
            figures.files.join(", ")
        ),
    };
    output.result(human, &figures)
}

/// What was written.
struct Written {
    dtype: &'static str,
    bytes: u64,
    others: Vec<String>,
}

fn file(args: &Args, model: &Model, adapter: Option<&Adapter>) -> Result<Written> {
    if args.output.exists() {
        let found = format!("{}, which exists", args.output.display());
        return Err(Error::input("--output", "a file that does not exist yet", found, "choose another name"));
    }
    let kind = args.dtype.kind(&model.bytes())?;
    let mut file = WholeFile::create(&args.output)?;
    write_gguf(&mut file, &model.bytes(), adapter, kind, &|error| Error::io(&args.output, "write", error))?;
    file.commit()?;
    let bytes = fs::metadata(&args.output).map_or(0, |data| data.len());
    Ok(Written { dtype: kind.name(), bytes, others: Vec::new() })
}

fn directory(args: &Args, model: &Model, adapter: Option<&Adapter>) -> Result<Written> {
    if args.dtype == Dtype::Q8_0 {
        let fix = "give --output an ending .gguf, or choose another type";
        return Err(Error::input("--dtype q8_0", "a GGUF file as --output", args.output.display(), fix));
    }
    let folder = NewFolder::create(&args.output, "--output")?;
    let forced = args.dtype.forced();
    let dtype = forced.map_or(ExportDType::Auto, |(dtype, _)| ExportDType::As(dtype));
    let weights = merged(&model.bytes().weights()?, &model.bytes().decoder_config()?, adapter, dtype)?;
    let others = model.write_companions(folder.path(), forced.map(|(_, name)| name), None)?;
    let path = folder.path().join("model.safetensors");
    fs::write(path, &weights).map_err(|error| Error::io(&args.output, "write", error))?;
    folder.commit()?;
    Ok(Written { dtype: forced.map_or("auto", |(_, name)| name), bytes: weights.len() as u64, others })
}

fn layers(adapter: &Adapter) -> usize {
    match &adapter.spec.target_modules {
        TargetModules::Names(names) => names.len(),
        TargetModules::AllLinear => 0,
    }
}
