//! The best state of a run so far: a second copy of the trained tensors, beside the policy.

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
    /// Copies the policy's current values.
    pub fn keep(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder,
        step: usize,
        metrics: Option<Metrics>,
    ) -> Result<()> {
        if self.values.is_none() {
            self.values = Some(Arenas::new(gpu, decoder.layout(), Purpose::References, "best state")?);
        }
        if let Some(values) = &self.values {
            decoder.values().copy_to(&mut Recorder::new(gpu), values);
        }
        (self.step, self.metrics) = (step, metrics);
        Ok(())
    }

    /// The step and the metrics of the kept state, if there is one.
    pub fn kept(&self) -> Option<(usize, Option<Metrics>)> {
        self.values.as_ref().map(|_| (self.step, self.metrics.clone()))
    }

    /// The values of the kept state, if there is one.
    pub fn values(&self) -> Option<&Arenas> {
        self.values.as_ref()
    }

    /// Copies the kept state, if there is one, back into the policy; returns its step and metrics.
    pub fn restore(self, gpu: &Gpu, decoder: &Decoder) -> Option<(usize, Option<Metrics>)> {
        let values = self.values?;
        values.copy_to(&mut Recorder::new(gpu), decoder.values());
        Some((self.step, self.metrics))
    }
}
