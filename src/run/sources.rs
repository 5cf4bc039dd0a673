//! The inputs of a run: the files that its settings name, or any other source of a [`Job`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{BUILT_IN_EXAMPLES, ReferenceSource, RunConfig};
use crate::error::{Error, Result, setting};
use crate::files::{AdapterFiles, Model, ModelFiles, Source};
use crate::train::{Inputs, Job, Meter, ReferenceBytes};

/// The source of a run's model and examples. It is read again after a lost GPU, or to try again with less
/// memory.
pub trait Material {
    /// The model.
    fn model(&self) -> &Model;

    /// All inputs, as bytes.
    fn inputs(&self) -> Inputs<'_>;

    /// Warnings about files that are valid but unusual, one sentence each, shown when the run starts.
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

    /// Checks that no file was written to since it was opened.
    ///
    /// # Errors
    /// [`Error::Input`], which names a file that was.
    fn check_unchanged(&self) -> Result<()> {
        self.model().check_unchanged()
    }
}

/// All files that a run reads. They are loaded (weights are memory-mapped) before anything is written.
#[derive(Debug)]
pub struct RunFiles {
    model: Model,
    adapter: Option<AdapterFiles>,
    train: Source,
    eval: Option<Source>,
    retain: Option<Source>,
    anchor_examples: Option<Source>,
    samples: Option<Source>,
    positive: Option<CheckpointFiles>,
    negative: Option<CheckpointFiles>,
    meter: Option<Arc<dyn Meter>>,
    remarks: Vec<String>,
}

/// A reference model from disk, of the same kind as the run trains.
#[derive(Debug)]
enum CheckpointFiles {
    Adapter(AdapterFiles),
    Model(Model),
}

impl CheckpointFiles {
    fn bytes(&self) -> ReferenceBytes<'_> {
        match self {
            Self::Adapter(files) => ReferenceBytes::Adapter(files.bytes()),
            Self::Model(model) => ReferenceBytes::Model(Box::new(model.bytes())),
        }
    }
}

impl RunFiles {
    /// Opens the files that the settings name.
    ///
    /// # Errors
    /// [`Error::Input`], which names the first missing or invalid file and its setting.
    pub fn open(config: &RunConfig) -> Result<Self> {
        let train = Source::read(&config.data.train, &setting("train"))?;
        Self::with(config, train, Model::open(&config.model.model)?)
    }

    /// As [`RunFiles::open`], with training rows and a model that are already open.
    ///
    /// # Errors
    /// As [`RunFiles::open`].
    pub fn with(config: &RunConfig, train: Source, model: Model) -> Result<Self> {
        let source = |path: &Option<PathBuf>, key| {
            path.as_deref().map(|path| Source::read(path, &setting(key))).transpose()
        };
        let model = model.with_chat_template(config.model.chat_template.as_deref())?;
        let mut remarks = Vec::new();
        let mut adapter = |path: &Path, key| {
            let files = AdapterFiles::open(path, &setting(key))?;
            remarks.extend(files.remarks(&model)?);
            Ok::<_, Error>(files)
        };
        let own = config.model.adapter.as_deref().map(|path| adapter(path, "adapter")).transpose()?;
        let mut checkpoint = |source: &ReferenceSource, key| {
            let ReferenceSource::Checkpoint(path) = source else { return Ok(None) };
            Ok::<_, Error>(Some(match config.lora.enabled {
                true => CheckpointFiles::Adapter(adapter(path, key)?),
                false => CheckpointFiles::Model(ModelFiles::open(path, &setting(key))?.into()),
            }))
        };
        let positive = checkpoint(&config.reference.positive, "reference.positive")?;
        let negative = checkpoint(&config.reference.negative, "reference.negative")?;
        let examples = config.anchors.anchor_examples.as_ref().filter(|name| *name != BUILT_IN_EXAMPLES);
        let examples = examples.map(PathBuf::from);
        Ok(Self {
            train,
            eval: source(&config.data.eval, "eval")?,
            retain: source(&config.retain.data, "retain.data")?,
            anchor_examples: source(&examples, "anchor_examples")?,
            samples: source(&config.anchors.samples_file, "samples_file")?,
            adapter: own,
            positive,
            negative,
            model,
            meter: None,
            remarks,
        })
    }

    /// With a meter that tells bad anchors, for [`AnchorChoice::Meter`](crate::config::AnchorChoice).
    #[must_use]
    pub fn with_meter(self, meter: Arc<dyn Meter>) -> Self {
        Self { meter: Some(meter), ..self }
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
            retain: self.retain.as_ref().map(named).or(self.model.ordinary()),
            anchor_examples: self.anchor_examples.as_ref().map(named),
            samples: self.samples.as_ref().map(named),
            positive: self.positive.as_ref().map(CheckpointFiles::bytes),
            negative: self.negative.as_ref().map(CheckpointFiles::bytes),
            meter: self.meter.clone(),
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
