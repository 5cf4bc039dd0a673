//! `aweigh export`: merges an adapter and writes a plain model directory or a GGUF file.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::modelfile::modelfile;
use crate::open;
use crate::terminal::output::Output;
use crate::terminal::text::bytes;
use aweigh::error::{Error, Result};
use aweigh::files::{AdapterFiles, Model, NewFolder, WholeFile, write_whole};
use aweigh::gpu::DType;
use aweigh::model::TargetModules;
use aweigh::model::gguf::Kind;
use aweigh::model::{Adapter, AdapterBytes, ExportDType, ModelBytes, merged, write_gguf, write_gguf_adapter};

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

/// The type of the written weights, by transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// The types in the model
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
  aweigh export --model DIR --adapter run/adapter --adapter-only --output adapter.gguf
  aweigh export --model DIR --adapter run/adapter --modelfile --output for-ollama
  aweigh export --model tiny --output tiny-model --dtype float32";

impl Dtype {
    /// The type that all weights are converted to, and its name in transformers; `None` if they keep their
    /// types.
    fn forced(self) -> Option<(DType, &'static str)> {
        match self {
            Self::Float32 => Some((DType::F32, "float32")),
            Self::Float16 => Some((DType::F16, "float16")),
            Self::Bfloat16 => Some((DType::Bf16, "bfloat16")),
            Self::Auto | Self::Q8_0 => None,
        }
    }

    /// The type as the flag gives it.
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Q8_0 => "q8_0",
            other => other.forced().map_or("auto", |(_, name)| name),
        }
    }

    /// The type of the matrices in a GGUF file. `Auto` takes that of the model's embedding, or F16 if a file
    /// cannot have it.
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
pub struct Figures {
    output: String,
    model: String,
    adapter: Option<String>,
    dtype: &'static str,
    /// Layers that the adapter changed.
    merged_layers: usize,
    /// Size of model.safetensors, or of the GGUF file.
    bytes: u64,
    /// The directory's other files.
    files: Vec<String>,
}

/// Merges and writes.
///
/// # Errors
/// Invalid flags or files; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let (only, is_file, ollama) = (args.adapter_only, is_file(&args.output), args.modelfile);
    let figures = write(args, output)?;
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

/// Whether a GGUF file is asked for, not a directory.
fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "gguf")
}

/// Merges and writes; prints only warnings.
///
/// # Errors
/// As [`run`].
pub fn write(args: Args, output: &Output) -> Result<Figures> {
    let model = open::model(&args.model, true, output)?;
    let adapter = args.adapter.as_deref();
    let adapter = adapter.map(|path| open::adapter(path, "--adapter", &model, output)).transpose()?;
    let adapter = adapter.as_ref().map(AdapterFiles::bytes);
    let adapter = adapter.as_ref().map(AdapterBytes::parse).transpose()?;
    let is_file = is_file(&args.output);
    if args.modelfile && is_file {
        let found = args.output.display();
        return Err(Error::input("--output", "a directory, for --modelfile", found, "leave out \".gguf\""));
    }
    if args.adapter_only && !is_file {
        let fix = "an adapter in PEFT's format is there already: that of --adapter";
        return Err(Error::input("--output", "a name that ends in .gguf", args.output.display(), fix));
    }
    let written = if args.modelfile {
        ollama(&args, &model, adapter.as_ref(), output)?
    } else if is_file {
        file(&args, &model, adapter.as_ref())?
    } else {
        directory(&args, &model, adapter.as_ref())?
    };
    Ok(Figures {
        output: args.output.display().to_string(),
        model: args.model,
        adapter: args.adapter.map(|path| path.display().to_string()),
        dtype: written.dtype,
        merged_layers: adapter.map_or(0, |adapter| layers(&adapter)),
        bytes: written.bytes,
        files: written.others,
    })
}

/// The names of the files for Ollama.
const GGUF: &str = "model.gguf";
const MODELFILE: &str = "Modelfile";

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
    let failed = |error| Error::io(&args.output, "write", error);
    let alone = adapter.filter(|_| args.adapter_only);
    let kind = match (alone, args.dtype) {
        (None, dtype) => dtype.kind(&model.bytes())?,
        (Some(_), Dtype::Auto | Dtype::Float32) => Kind::F32,
        (Some(_), Dtype::Float16) => Kind::F16,
        (Some(_), Dtype::Bfloat16 | Dtype::Q8_0) => {
            let fix = "give --dtype float16, or none";
            return Err(Error::input("--dtype", "float32 or float16 for an adapter", args.dtype.name(), fix));
        }
    };
    let mut file = WholeFile::create(&args.output)?;
    match alone {
        Some(adapter) => write_gguf_adapter(&mut file, &model.bytes(), adapter, kind, &failed)?,
        None => write_gguf(&mut file, &model.bytes(), adapter, kind, &failed)?,
    }
    file.commit()?;
    let bytes = fs::metadata(&args.output).map_or(0, |data| data.len());
    Ok(Written { dtype: kind.name(), bytes, others: Vec::new() })
}

/// A folder with a GGUF file and the Modelfile that names it.
fn ollama(args: &Args, model: &Model, adapter: Option<&Adapter>, output: &Output) -> Result<Written> {
    let folder = NewFolder::create(&args.output, "--output")?;
    let gguf = Args { output: folder.path().join(GGUF), ..args.clone() };
    let written = file(&gguf, model, adapter)?;
    let (text, has_template) = modelfile(&model.bytes(), GGUF)?;
    if !has_template {
        output.warn(
            "the chat template does more than a Modelfile can say: there is no TEMPLATE in it, and Ollama \
             uses one that it knows, if any",
        );
    }
    write_whole(&folder.path().join(MODELFILE), text.as_bytes())?;
    folder.commit()?;
    Ok(Written { others: vec![MODELFILE.into()], ..written })
}

fn directory(args: &Args, model: &Model, adapter: Option<&Adapter>) -> Result<Written> {
    if args.dtype == Dtype::Q8_0 {
        let fix = "give --output a name that ends in .gguf, or choose another --dtype";
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
