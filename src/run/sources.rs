//! What a run is made from: the files that its settings name, or anything else that gives a job.

use std::path::{Path, PathBuf};

use crate::config::{ReferenceSource, RunConfig};
use crate::error::{Error, Result};
use crate::files::{AdapterFiles, Model, ModelFiles, Source};
use crate::train::{Checkpoint, Inputs, Job};

/// What a run is made from. It is asked again where a run begins anew: on a GPU that was opened again, or
/// with less memory.
pub trait Material {
    /// The model.
    fn model(&self) -> &Model;

    /// Everything that is read, as bytes.
    fn inputs(&self) -> Inputs<'_>;

    /// What is odd about the files, though allowed: one sentence each, told when the run begins.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// The examples, read and checked.
    ///
    /// # Errors
    /// As [`Inputs::read`].
    fn job(&self, config: &RunConfig) -> Result<Job<'_>> {
        self.inputs().read(config)
    }

    /// Fails where files were written to since they were opened.
    ///
    /// # Errors
    /// [`Error::Input`] names the file.
    fn check_unchanged(&self) -> Result<()> {
        self.model().check_unchanged()
    }
}

/// Every file that a run reads, in memory (weights are mapped) before anything is written.
#[derive(Debug)]
pub struct RunFiles {
    model: Model,
    adapter: Option<AdapterFiles>,
    train: Source,
    eval: Option<Source>,
    samples: Option<Source>,
    positive: Option<CheckpointFiles>,
    negative: Option<CheckpointFiles>,
    remarks: Vec<String>,
}

/// A reference model from disk: of the kind that the run trains.
#[derive(Debug)]
enum CheckpointFiles {
    Adapter(AdapterFiles),
    Model(Model),
}

impl CheckpointFiles {
    fn bytes(&self) -> Checkpoint<'_> {
        match self {
            Self::Adapter(files) => Checkpoint::Adapter(files.bytes()),
            Self::Model(model) => Checkpoint::Model(Box::new(model.bytes())),
        }
    }
}

impl RunFiles {
    /// Opens what the settings name.
    ///
    /// # Errors
    /// [`Error::Input`] names the first that is missing, and the flag that asked for it.
    pub fn open(config: &RunConfig) -> Result<Self> {
        let train = Source::read(&config.data.train, "--train")?;
        Self::with(config, train, Model::open(&config.model.model)?)
    }

    /// The same with training rows and a model that are open already.
    ///
    /// # Errors
    /// As [`RunFiles::open`].
    pub fn with(config: &RunConfig, train: Source, model: Model) -> Result<Self> {
        let source =
            |path: &Option<PathBuf>, flag| path.as_deref().map(|path| Source::read(path, flag)).transpose();
        let model = model.with_chat_template(config.model.chat_template.as_deref())?;
        let mut remarks = Vec::new();
        let mut adapter = |path: &Path, flag| {
            let files = AdapterFiles::open(path, flag)?;
            remarks.extend(files.remarks(&model)?);
            Ok::<_, Error>(files)
        };
        let own = config.model.adapter.as_deref().map(|path| adapter(path, "--adapter")).transpose()?;
        let mut checkpoint = |source: &ReferenceSource, flag| {
            let ReferenceSource::Checkpoint(path) = source else { return Ok(None) };
            Ok::<_, Error>(Some(match config.lora.enabled {
                true => CheckpointFiles::Adapter(adapter(path, flag)?),
                false => CheckpointFiles::Model(ModelFiles::open(path, flag)?.into()),
            }))
        };
        let positive = checkpoint(&config.reference.positive, "--reference-positive")?;
        let negative = checkpoint(&config.reference.negative, "--reference-negative")?;
        Ok(Self {
            train,
            eval: source(&config.data.eval, "--eval")?,
            samples: source(&config.anchors.samples_file, "--samples-file")?,
            adapter: own,
            positive,
            negative,
            model,
            remarks,
        })
    }
}

impl Material for RunFiles {
    fn model(&self) -> &Model {
        &self.model
    }

    fn inputs(&self) -> Inputs<'_> {
        fn named(source: &Source) -> (&str, &[u8]) {
            (&source.origin, &source.bytes)
        }
        Inputs {
            adapter: self.adapter.as_ref().map(AdapterFiles::bytes),
            eval: self.eval.as_ref().map(named),
            samples: self.samples.as_ref().map(named),
            positive: self.positive.as_ref().map(CheckpointFiles::bytes),
            negative: self.negative.as_ref().map(CheckpointFiles::bytes),
            ..Inputs::new(self.model.bytes(), named(&self.train))
        }
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.model.check_unchanged()?;
        self.adapter.iter().try_for_each(AdapterFiles::check_unchanged)?;
        [&self.positive, &self.negative].into_iter().flatten().try_for_each(|checkpoint| match checkpoint {
            CheckpointFiles::Adapter(files) => files.check_unchanged(),
            CheckpointFiles::Model(files) => files.check_unchanged(),
        })
    }
}
