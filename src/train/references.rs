//! The reference models r+ and r−, each of one of the four kinds of [`ReferenceSource`].

use crate::config::ReferenceSource;
use crate::gpu::{Gpu, Purpose, Recorder};
use crate::kernels::ema;
use crate::model::Decoder;
use crate::nn::{Arenas, Pass};
use crate::{Error, Result};

/// One reference model.
pub struct Reference {
    source: ReferenceSource,
    /// Its own values; `None` if it is the model with its adapter off.
    values: Option<Arenas>,
}

impl Reference {
    /// A reference to the current state of `decoder`, before the first step. For
    /// [`ReferenceSource::Checkpoint`], `checkpoint` has the values instead.
    pub fn new(
        gpu: &Gpu,
        decoder: &Decoder,
        source: &ReferenceSource,
        fresh_adapter: bool,
        checkpoint: Option<Arenas>,
    ) -> Result<Self> {
        let source = source.clone();
        if let ReferenceSource::Checkpoint(path) = &source {
            let expected = "the weights of this reference checkpoint";
            let values = checkpoint.ok_or_else(|| {
                Error::input(path.display(), expected, "none", "set Inputs::positive or Inputs::negative")
            })?;
            return Ok(Self { source, values: Some(values) });
        }
        if !Self::has_values(&source, fresh_adapter) {
            return Ok(Self { source, values: None });
        }
        let values = Arenas::new(gpu, decoder.layout(), Purpose::References, "reference")?;
        let mut rec = Recorder::new(gpu);
        decoder.values().copy_to(&mut rec, &values);
        Ok(Self { source, values: Some(values) })
    }

    /// Whether it needs its own values. The initial model with a fresh adapter does not: it is the model with
    /// the adapter off.
    pub fn has_values(source: &ReferenceSource, fresh_adapter: bool) -> bool {
        !fresh_adapter || *source != ReferenceSource::Initial
    }

    /// Its forward pass.
    pub fn pass<'a>(&'a self, decoder: &'a Decoder) -> Pass<'a> {
        match &self.values {
            None => decoder.base(),
            Some(values) => Pass { values, adapter: true, dropout: None, decoding: false, sparse: false },
        }
    }

    /// Its own values; `None` if it is the model with its adapter off.
    pub(super) fn values(&self) -> Option<&Arenas> {
        self.values.as_ref()
    }

    /// Whether it never changes, so that its log-probs can be cached.
    pub fn is_fixed(&self) -> bool {
        self.source.is_fixed()
    }

    /// Updates a moving reference from the policy after optimizer step `done` (counted from 1).
    pub fn follow(&self, gpu: &Gpu, decoder: &Decoder, done: usize) -> Result<()> {
        let Some(values) = &self.values else { return Ok(()) };
        let mut rec = Recorder::new(gpu);
        match self.source {
            ReferenceSource::CopyEvery(n) if done.is_multiple_of(n) => {
                decoder.values().copy_to(&mut rec, values)
            }
            ReferenceSource::Ema(decay) => {
                for (value, average) in decoder.values().tensors().iter().zip(values.tensors()) {
                    ema::update(&mut rec, value, average, value.len(), decay as f32)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
