//! When a run draws its anchors: all that are missing before the first step, and those that grew old on the way.

use super::align::Run;
use super::anchors::{self, Draw, Pool};
use super::evaluate::eval_anchors;
use crate::config::{OnlineSampler, Takes};
use crate::data::Example;
use crate::sample::{self, Request};
use crate::{Error, Result};

/// Waves of a sampler between which the anchors drawn so far may be kept.
const WAVES: usize = 4;

/// Keeps the draws of held-out answers apart from those of anchors.
const COMPLETIONS: u32 = 0xc0_4d1e;

impl Run<'_> {
    fn takes_anchors(&self) -> bool {
        self.method().takes() == Takes::Anchors
    }

    /// Draws what is missing of each prompt's anchors, where the loss takes them, and of the held-out prompts'; leaves out prompts that
    /// got none.
    pub(super) async fn draw_offline(&mut self) -> Result<()> {
        let takes_anchors = self.takes_anchors();
        let k = if takes_anchors { self.config.method.num_samples } else { 0 };
        let wanted = [k, eval_anchors(self.config)];
        let missing = [false, true].map(|held_out| self.undrawn(held_out, wanted[usize::from(held_out)]));
        let lacking = |pools: &[Pool], missing: &[usize], k: usize| -> usize {
            missing.iter().map(|&i| k - pools[i].anchors.len()).sum()
        };
        let total = lacking(&self.pools, &missing[0], wanted[0])
            + lacking(&self.held_out.pools, &missing[1], wanted[1]);
        if total > 0 {
            self.observer.begin("sampling anchors", total);
            self.draw_all(missing, wanted).await?;
            self.observer.end();
        }
        if takes_anchors { self.drop_empty() } else { Ok(()) }
    }

    /// Draws the anchors of the training prompts and of those held out, a few waves of the sampler at a time.
    async fn draw_all(&mut self, missing: [Vec<usize>; 2], wanted: [usize; 2]) -> Result<()> {
        for ((missing, k), held_out) in missing.iter().zip(wanted).zip([false, true]) {
            let together = WAVES * (self.room.rows() / k.max(1)).max(1);
            for some in missing.chunks(together) {
                self.draw_some(held_out, some, k).await?;
                if self.observer.wants_anchors()
                    && let Some(drawn) = self.drawn()?
                {
                    self.observer.saved(drawn)?;
                }
            }
        }
        Ok(())
    }

    /// The training prompts, or those held out, whose anchors were not drawn yet and are fewer than `k`.
    fn undrawn(&self, held_out: bool, k: usize) -> Vec<usize> {
        let (examples, pools) = match held_out {
            true => (&self.held_out.examples, &self.held_out.pools),
            false => (&self.train, &self.pools),
        };
        let undrawn = |i: &usize| {
            let pool = &pools[*i];
            let watches = !held_out || examples[*i].negative_ids.is_some();
            pool.generation == 0 && pool.anchors.len() < k && watches
        };
        (0..examples.len()).filter(undrawn).collect()
    }

    /// Draws what is missing of these prompts' anchors. Where that fails they are as they were.
    async fn draw_some(&mut self, held_out: bool, some: &[usize], k: usize) -> Result<()> {
        let settings = anchors::settings(&self.config.anchors, self.config.train.seed, &self.ends);
        let decoder = &self.trainer.decoder;
        let pass = self.negative.pass(decoder);
        // Held-out prompts are numbered after the training prompts.
        let (first, examples, pools) = match held_out {
            true => (self.train.len(), &self.held_out.examples, &mut self.held_out.pools),
            false => (0, &self.train, &mut self.pools),
        };
        let before: Vec<Pool> = some.iter().map(|&i| pools[i].clone()).collect();
        let mut draws: Vec<Draw> = pools
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| some.binary_search(i).is_ok())
            .map(|(i, pool)| Draw::new(first + i, &examples[i], true, pool))
            .collect();
        let observer = &mut *self.observer;
        let mut progress = |answers, tokens| observer.advance(answers, tokens);
        let drawn =
            anchors::draw(self.room, self.gpu, decoder, pass, &mut draws, k, &settings, 0, &mut progress);
        match drawn.await {
            Ok(counts) if !held_out => self.counts.add(&counts),
            Ok(_) => {}
            Err(error) => {
                some.iter().zip(before).for_each(|(&i, pool)| pools[i] = pool);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Leaves out prompts whose samples all stayed empty.
    fn drop_empty(&mut self) -> Result<()> {
        let keep = |examples: &[Example], pools: &[Pool]| -> Vec<bool> {
            let sampled = examples.iter().zip(pools);
            sampled.map(|(e, pool)| e.negative_ids.is_none() || !pool.anchors.is_empty()).collect()
        };
        let train = keep(&self.train, &self.pools);
        if !train.contains(&true) {
            let fix = "raise the temperature, or change the safety instruction";
            return Err(Error::input("anchors", "answers with at least one word", "only empty samples", fix));
        }
        let eval = keep(&self.held_out.examples, &self.held_out.pools);
        retain(&mut self.train, &train);
        retain(&mut self.pools, &train);
        retain(&mut self.cached, &train);
        retain(&mut self.kept, &train);
        retain(&mut self.held_out.kept, &eval);
        retain(&mut self.held_out.examples, &eval);
        retain(&mut self.held_out.pools, &eval);
        Ok(())
    }

    /// Draws the anchors of this step's prompts anew where they are due.
    pub(super) async fn refresh_anchors(&mut self, step: usize, batch: &[usize]) -> Result<()> {
        let a = &self.config.anchors;
        let Some(start) = a.online_start_step.filter(|&s| step >= s && self.takes_anchors()) else {
            return Ok(());
        };
        let due = |pool: &Pool| pool.step < start || step >= pool.step + a.refresh_every;
        let mut stale: Vec<usize> = batch.iter().copied().filter(|&i| due(&self.pools[i])).collect();
        stale.sort_unstable();
        stale.dedup();
        if stale.is_empty() {
            return Ok(());
        }
        self.trainer.put_away().await?;
        let decoder = &self.trainer.decoder;
        let (pass, instructed) = match a.online_sampler {
            OnlineSampler::Reference => (self.negative.pass(decoder), true),
            OnlineSampler::Policy => (decoder.policy(), false),
            OnlineSampler::PolicyWithInstruction => (decoder.policy(), true),
        };
        let settings = anchors::settings(a, self.config.train.seed, &self.ends);
        let old: Vec<Pool> = stale.iter().map(|&i| self.pools[i].clone()).collect();
        let mut draws: Vec<Draw> = self
            .train
            .iter()
            .zip(&mut self.pools)
            .enumerate()
            .filter(|(i, _)| stale.binary_search(i).is_ok())
            .map(|(i, (example, pool))| Draw::new(i, example, instructed, pool))
            .collect();
        let k = self.config.method.num_samples;
        draws.iter_mut().for_each(|draw| draw.pool.anchors.clear());
        let observer = &mut *self.observer;
        let alive = &mut |_, _| observer.advance(0, 0);
        let counts =
            anchors::draw(self.room, self.gpu, decoder, pass, &mut draws, k, &settings, step, alive).await?;
        self.counts.add(&counts);
        for (&i, old) in stale.iter().zip(old) {
            // A model that answers with nothing anchors nothing: its earlier answers stay.
            if self.pools[i].anchors.is_empty() {
                self.pools[i].anchors = old.anchors;
            } else {
                self.cached[i] = None;
            }
        }
        self.score_missing(&stale).await?;
        self.report_anchors(&stale)
    }

    /// Has the policy answer some held-out prompts, always by the same random numbers, and tells the observer.
    pub(super) async fn answer_held_out(&mut self, step: usize) -> Result<()> {
        let (config, decoder) = (self.config, &self.trainer.decoder);
        let fits = |example: &&Example| {
            example.prompt_ids.len() + config.anchors.max_new_tokens <= decoder.config().context()
        };
        let examples: Vec<&Example> =
            self.held_out.examples.iter().filter(fits).take(config.output.num_completions).collect();
        if examples.is_empty() {
            return Ok(());
        }
        let settings = anchors::settings(&config.anchors, config.train.seed ^ COMPLETIONS, &self.ends);
        let requests: Vec<Request> = (0..)
            .zip(&examples)
            .map(|(index, e)| Request { prompt: &e.prompt_ids, first_sample: 0, samples: 1, index })
            .collect();
        let room = self.reach.completion_room(self.gpu, decoder.config(), config);
        let observer = &mut *self.observer;
        let alive = &mut |_, _| observer.advance(0, 0);
        let drawn =
            sample::generate_in(room, self.gpu, decoder, decoder.policy(), &requests, &settings, alive)
                .await?;
        let pairs = examples.into_iter().zip(drawn.into_iter().flatten());
        self.observer.completions(step, &pairs.collect::<Vec<_>>())
    }

    /// Tells the observer the examples' anchors with their log-probs.
    pub(super) fn report_anchors(&mut self, examples: &[usize]) -> Result<()> {
        if !self.takes_anchors() {
            return Ok(());
        }
        let scored = |i: usize| self.cached[i].as_deref().unwrap_or_default();
        examples.iter().try_for_each(|&i| self.observer.anchors(&self.train[i], &self.pools[i], scored(i)))
    }
}

fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(true));
}
