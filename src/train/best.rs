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
    /// Keeps the policy as it is now.
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

    /// Its step and figures, if a state was kept.
    pub fn kept(&self) -> Option<(usize, Option<Metrics>)> {
        self.values.as_ref().map(|_| (self.step, self.metrics.clone()))
    }

    /// Its values, if a state was kept.
    pub fn values(&self) -> Option<&Arenas> {
        self.values.as_ref()
    }

    /// Puts the best state back into the policy, if one was kept.
    pub fn restore(self, gpu: &Gpu, decoder: &Decoder) -> Option<(usize, Option<Metrics>)> {
        let values = self.values?;
        values.copy_to(&mut Recorder::new(gpu), decoder.values());
        Some((self.step, self.metrics))
    }
}
