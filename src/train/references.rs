//! The reference models r+ and r−, each of one of four kinds.

use crate::config::ReferenceSource;
use crate::gpu::{Gpu, Purpose, Recorder};
use crate::kernels::ema;
use crate::model::Decoder;
use crate::nn::{Arenas, Pass};
use crate::{Error, Result};

/// One reference: where its values are, and when they change.
pub struct Reference {
    source: ReferenceSource,
    /// `None`: the model with its fresh adapter off.
    values: Option<Arenas>,
}

impl Reference {
    /// A reference of `decoder` as it is now, before the first step. `checkpoint` holds the values of
    /// [`ReferenceSource::Checkpoint`].
    pub fn new(
        gpu: &Gpu,
        decoder: &Decoder,
        source: &ReferenceSource,
        fresh_adapter: bool,
        checkpoint: Option<Arenas>,
    ) -> Result<Self> {
        let source = source.clone();
        if let ReferenceSource::Checkpoint(path) = &source {
            let expected = "the checkpoint's weights, read";
            let values = checkpoint.ok_or_else(|| {
                Error::input(path.display(), expected, "none", "give them in Inputs::positive or negative")
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

    /// Whether it is more than the model with its adapter off: a fresh adapter changes nothing.
    pub fn has_values(source: &ReferenceSource, fresh_adapter: bool) -> bool {
        !fresh_adapter || *source != ReferenceSource::Initial
    }

    /// Its forward pass.
    pub fn pass<'a>(&'a self, decoder: &'a Decoder) -> Pass<'a> {
        match &self.values {
            None => decoder.base(),
            Some(values) => Pass { values, adapter: true, dropout: None, decoding: false },
        }
    }

    /// Its own values; `None` where it is the model with its adapter off.
    pub(super) fn values(&self) -> Option<&Arenas> {
        self.values.as_ref()
    }

    /// Whether its log-probs never change and may be kept.
    pub fn is_fixed(&self) -> bool {
        self.source.is_fixed()
    }

    /// Follows the policy after optimizer step `done` (counted from 1).
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
