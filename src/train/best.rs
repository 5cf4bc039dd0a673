//! The best state of a run, kept beside the policy.

use super::metrics::Metrics;
use crate::Result;
use crate::gpu::{Gpu, Purpose, Recorder};
use crate::model::Decoder;
use crate::nn::Arenas;

/// The best state so far, on the device.
#[derive(Default)]
pub(super) struct Best {
    values: Option<Arenas>,
    step: usize,
    metrics: Option<Metrics>,
}

impl Best {
    pub fn keep(&mut self, gpu: &Gpu, decoder: &Decoder, step: usize, metrics: &Metrics) -> Result<()> {
        if self.values.is_none() {
            self.values = Some(Arenas::new(gpu, decoder.layout(), Purpose::References, "best state")?);
        }
        if let Some(values) = &self.values {
            decoder.values().copy_to(&mut Recorder::new(gpu), values);
        }
        (self.step, self.metrics) = (step, Some(metrics.clone()));
        Ok(())
    }

    /// Puts the best state back into the policy, if one was kept.
    pub fn restore(self, gpu: &Gpu, decoder: &Decoder) -> Option<(usize, Option<Metrics>)> {
        let values = self.values?;
        values.copy_to(&mut Recorder::new(gpu), decoder.values());
        Some((self.step, self.metrics))
    }
}
