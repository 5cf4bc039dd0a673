//! `aweigh align`: a run from its settings to its folder.

use std::path::{Path, PathBuf};

use crate::files::{self, RunFolder, Source};
use crate::files::{AdapterFiles, Model, ModelFiles};
use super::output::Output;
use crate::config::{Layer, PartialConfig, ReferenceSource, RunConfig};
use crate::error::Result;

/// Align a model: sample anchors, train, stop in time, write an adapter.
///
/// Settings come from --config and from flags; a flag wins over the file. A file has the flags' names with underscores,
/// in sections: model, data, method, anchors, reference, lora, train, stop, output, gpu. Every run writes its complete
/// settings to config.toml in its folder.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, next_help_heading = "Run")]
pub struct Args {
    /// Settings in TOML; flags win over it. Relative paths in it start at the current folder
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Replace an earlier run in --output-dir. A folder that holds anything else is still refused
    #[arg(long)]
    pub overwrite: bool,
    /// All the settings.
    #[command(flatten)]
    pub settings: PartialConfig,
}

const EXAMPLES: &str = "\
Examples:
  aweigh align --model SmolLM2-135M-Instruct --train flagged.jsonl --output-dir run
  aweigh align --config run.toml --learning-rate 1e-5 --output-dir run2
  aweigh align --config run.toml --samples-file run/samples.jsonl --output-dir run3   # the same anchors again

A file for --config:
  [model]
  model = \"SmolLM2-135M-Instruct\"
  [data]
  train = \"flagged.jsonl\"
  [train]
  learning_rate = 3e-5
  [output]
  output_dir = \"run\"

What to watch: rewards/anchor and rewards/negative in metrics.jsonl. The second should fall; a first that falls with it
is a model that breaks, and the stop rule ends such a run.";

/// A run's settings, from the file and the flags.
///
/// # Errors
/// [`crate::error::Error::Input`] for the first setting that is wrong, with its place.
pub fn settings(args: &Args) -> Result<RunConfig> {
    let mut layers = Vec::new();
    if let Some(path) = &args.config {
        layers.push(Layer::from_toml(&files::read_text(path, "--config")?, &path.display().to_string())?);
    }
    layers.push(Layer::from_flags(args.settings.clone()));
    RunConfig::resolve(layers)
}

/// Every file that a run reads, in memory before anything is written.
#[derive(Debug)]
pub struct Inputs {
    /// The model.
    pub model: Model,
    /// The adapter to start from.
    pub adapter: Option<AdapterFiles>,
    /// Training examples.
    pub train: Source,
    /// Held-out examples, where they have a file of their own.
    pub eval: Option<Source>,
    /// Anchors of an earlier run.
    pub samples: Option<Source>,
    /// r+, where it is a checkpoint.
    pub positive: Option<Checkpoint>,
    /// r-, where it is a checkpoint.
    pub negative: Option<Checkpoint>,
}

/// A reference model from disk: of the kind that the run trains.
#[derive(Debug)]
pub enum Checkpoint {
    /// A LoRA run's.
    Adapter(AdapterFiles),
    /// A full run's.
    Model(Box<ModelFiles>),
}

impl Inputs {
    /// Reads them all.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the first that is missing, and the flag that asked for it.
    pub fn read(config: &RunConfig) -> Result<Self> {
        let source =
            |path: &Option<PathBuf>, flag| path.as_deref().map(|path| Source::read(path, flag)).transpose();
        let adapter = config.model.adapter.as_deref();
        Ok(Self {
            train: Source::read(&config.data.train, "--train")?,
            eval: source(&config.data.eval, "--eval")?,
            samples: source(&config.anchors.samples_file, "--samples-file")?,
            model: Model::open(&config.model.model)?,
            adapter: adapter.map(|path| AdapterFiles::open(path, "--adapter")).transpose()?,
            positive: checkpoint(config, &config.reference.positive, "--reference-positive")?,
            negative: checkpoint(config, &config.reference.negative, "--reference-negative")?,
        })
    }
}

fn checkpoint(config: &RunConfig, source: &ReferenceSource, flag: &str) -> Result<Option<Checkpoint>> {
    match source {
        ReferenceSource::Checkpoint(path) if config.lora.enabled => {
            AdapterFiles::open(path, flag).map(|files| Some(Checkpoint::Adapter(files)))
        }
        ReferenceSource::Checkpoint(path) => {
            ModelFiles::open(path, flag).map(|files| Some(Checkpoint::Model(Box::new(files))))
        }
        _ => Ok(None),
    }
}

/// Aligns a model.
///
/// # Errors
/// Whatever is wrong with the settings, the files or the GPU; the run's folder is then as it was.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let config = settings(&args)?;
    let folder: &Path = &config.output.output_dir;
    RunFolder::check(folder, "--output-dir", args.overwrite)?;
    let _inputs = Inputs::read(&config)?;
    for warning in config.warnings() {
        output.warn(warning);
    }
    todo!("parse the inputs, RunFolder::create, train, RunFolder::keep once something is worth keeping")
}
