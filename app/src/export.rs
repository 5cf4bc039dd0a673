//! Writes a model, merged with an adapter or not, as a plain model directory, a GGUF file, or a folder for
//! Ollama; or an adapter as a GGUF file. For `aweigh export`, and for the page.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::messages::Messages;
use crate::modelfile::modelfile;
use crate::open;
use aweigh::error::{Error, Result};
use aweigh::files::{AdapterFiles, Model, NewFolder, WholeFile, disk, write_whole};
use aweigh::gpu::DType;
use aweigh::model::gguf::Kind;
use aweigh::model::{
    Adapter, AdapterBytes, ExportDType, ModelBytes, TargetModules, merged, write_gguf, write_gguf_adapter,
};

/// What is written.
#[derive(Clone, Debug)]
pub struct Export {
    /// The model that the adapter was trained on.
    pub model: String,
    /// The adapter to merge. Without it, the model alone is written.
    pub adapter: Option<PathBuf>,
    /// Directory for the new model, or a file if the name ends in .gguf.
    pub output: PathBuf,
    /// Whether the adapter alone is written, as a GGUF adapter.
    pub adapter_only: bool,
    /// Whether `output` is a directory with model.gguf and a Modelfile for Ollama.
    pub modelfile: bool,
    /// Type of the written weights; merges are computed in f64.
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

/// What was written: what `aweigh export --json` prints.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Where it was written.
    pub output: String,
    /// The model's name.
    pub model: String,
    /// The adapter's folder.
    pub adapter: Option<String>,
    /// The type of the written weights.
    pub dtype: &'static str,
    /// Layers that the adapter changed.
    pub merged_layers: usize,
    /// Size of model.safetensors, or of the GGUF file.
    pub bytes: u64,
    /// The directory's other files.
    pub files: Vec<String>,
}

/// Whether a GGUF file is asked for, not a directory.
pub fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "gguf")
}

/// Merges and writes; prints only warnings.
///
/// # Errors
/// Invalid settings or files; `output` is then unchanged.
pub fn write(args: Export, messages: &dyn Messages) -> Result<Figures> {
    let model = open::model(&args.model, true, messages)?;
    let adapter = args.adapter.as_deref();
    let adapter = adapter.map(|path| open::adapter(path, "--adapter", &model, messages)).transpose()?;
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
        ollama(&args, &model, adapter.as_ref(), messages)?
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

/// The name of the GGUF file for Ollama.
pub const GGUF: &str = "model.gguf";
/// The name of the file that tells Ollama of it.
pub const MODELFILE: &str = "Modelfile";

/// What was written.
struct Written {
    dtype: &'static str,
    bytes: u64,
    others: Vec<String>,
}

fn file(args: &Export, model: &Model, adapter: Option<&Adapter>) -> Result<Written> {
    if disk::exists(&args.output) {
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
    let bytes = disk::size(&args.output);
    Ok(Written { dtype: kind.name(), bytes, others: Vec::new() })
}

/// A folder with a GGUF file and the Modelfile that names it.
fn ollama(
    args: &Export,
    model: &Model,
    adapter: Option<&Adapter>,
    messages: &dyn Messages,
) -> Result<Written> {
    let folder = NewFolder::create(&args.output, "--output")?;
    let gguf = Export { output: folder.path().join(GGUF), ..args.clone() };
    let written = file(&gguf, model, adapter)?;
    let (text, has_template) = modelfile(&model.bytes(), GGUF)?;
    if !has_template {
        messages.warn(
            &"the chat template does more than a Modelfile can say: there is no TEMPLATE in it, and Ollama \
             uses one that it knows, if any",
        );
    }
    write_whole(&folder.path().join(MODELFILE), text.as_bytes())?;
    folder.commit()?;
    Ok(Written { others: vec![MODELFILE.into()], ..written })
}

fn directory(args: &Export, model: &Model, adapter: Option<&Adapter>) -> Result<Written> {
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
    disk::write(path, &weights).map_err(|error| Error::io(&args.output, "write", error))?;
    folder.commit()?;
    Ok(Written { dtype: forced.map_or("auto", |(_, name)| name), bytes: weights.len() as u64, others })
}

fn layers(adapter: &Adapter) -> usize {
    match &adapter.spec.target_modules {
        TargetModules::Names(names) => names.len(),
        TargetModules::AllLinear => 0,
    }
}
