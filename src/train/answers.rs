//! At every evaluation the model answers some held-out and some ordinary prompts. The answers are read as
//! texts: the stop rule sees what log-probs miss, such as refused ordinary prompts and repeated text.

use super::forecast::Work;
use super::metrics::Metrics;
use super::reader::Asked;
use super::run::{Run, tell};
use crate::Result;
use crate::config::RunConfig;
use crate::data::Example;
use crate::sample::{self, Answer, Request, SamplingParams};

/// Changes the seed, so that these answers and anchors use different random numbers.
const COMPLETIONS: u32 = 0xc0_4d1e;

/// How these answers are sampled.
pub(super) fn settings(config: &RunConfig, ends: &[u32]) -> SamplingParams {
    let seed = config.train.seed ^ COMPLETIONS;
    let max_new_tokens = config.output.completion_tokens as u32;
    SamplingParams { max_new_tokens, ..sample::sampling_params(&config.anchors, seed, ends) }
}

impl Run<'_> {
    /// Samples the policy's answers to some held-out and to the ordinary prompts, always with the same random
    /// numbers, passes them to the observer, and reads them.
    pub(super) async fn read_answers(&mut self, step: usize) -> Result<Metrics> {
        let (config, decoder) = (self.config, &self.trainer.decoder);
        let examples: Vec<&Example> = self.asked.iter().chain(&self.ordinary).collect();
        if examples.is_empty() {
            return Ok(Metrics::default());
        }
        let request = |(index, e)| -> Request { Request { prompt: e, first_sample: 0, samples: 1, index } };
        let prompts = examples.iter().map(|example| example.prompt_ids.as_slice());
        let requests: Vec<Request> = (0..).zip(prompts).map(request).collect();
        let room = self.batches.completion_room(self.gpu, decoder.config(), config);
        let settings = settings(config, &self.ends);
        let (observer, forecast) = (&mut *self.observer, &mut self.forecast);
        let alive = &mut |_, tokens| {
            tell(&mut *observer, forecast, Work::Answer, tokens);
            observer.advance(0, 0)
        };
        let drawn =
            sample::generate_in(room, self.gpu, decoder, decoder.policy(), &requests, &settings, alive)
                .await?;
        let mut pairs: Vec<(&Example, Answer)> =
            examples.into_iter().zip(drawn.into_iter().flatten()).collect();
        let ordinary = pairs.split_off(self.asked.len());
        let mut metrics = Metrics::default();
        for (asked, answers) in [(Asked::HeldOut, pairs), (Asked::Ordinary, ordinary)] {
            self.observer.completions(step, asked, &answers)?;
            if let Some(reader) = &self.reader {
                metrics.0.extend(reader.metrics(asked, &answers)?.0);
            }
        }
        Ok(metrics)
    }
}
