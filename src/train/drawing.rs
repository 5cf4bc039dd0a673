//! When a run samples its anchors: the missing ones before the first step, and outdated ones during training.

use super::anchors::{AnchorCounts, Draw, Drawn, Pool, RETRIES, Sampler};
use super::evaluate::eval_anchors;
use super::forecast::{Expected, Growing, Work, expected_length};
use super::observer::Phase;
use super::responses::parts_of;
use super::restore::drawn;
use super::retain::Retained;
use super::run::{Run, advance, tell};
use crate::config::OnlineSampler;
use crate::data::Example;
use crate::error::{setting, setting_to};
use crate::loss::Takes;
use crate::sample::{self, SamplingParams};
use crate::{Error, Result};

/// Anchors of at most this many tokens are meant as openings: behind them nothing is trained.
const OPENING: usize = 16;

/// Changes the seed, so that retained answers and anchors use different random numbers.
const RETAINED: u32 = 0x2e_7a1d;

/// The prompts that are answered before the first step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Train,
    HeldOut,
    Retained,
}

impl Run<'_> {
    fn takes_anchors(&self) -> bool {
        self.method().takes() == Takes::Anchors
    }

    /// Samples the missing anchors of the training prompts, if the loss takes anchors, of the held-out
    /// prompts, and the answers to the retain term's prompts. Drops prompts that are left without them.
    pub(super) async fn draw_offline(&mut self) -> Result<()> {
        let takes_anchors = self.takes_anchors();
        let of_negatives = self.method().is_of_negatives();
        let wanted = [
            (Of::Train, if takes_anchors { self.config.method.num_samples } else { 0 }),
            (Of::HeldOut, if of_negatives { eval_anchors(self.config) } else { 0 }),
            (Of::Retained, 1),
        ];
        let missing = wanted.map(|(of, k)| self.undrawn(of, k));
        let lacking = |((of, k), missing): (&(Of, usize), &Vec<usize>)| -> usize {
            let pools = self.prompts(*of).1;
            missing.iter().map(|&i| k - pools[i].anchors.len()).sum()
        };
        let total: usize = wanted.iter().zip(&missing).map(lacking).sum();
        if total > 0 {
            self.observer.begin(Phase::Anchors, total);
            let expected = self.expect(0, true);
            let mut drawn_so_far = (0, 0);
            for ((of, k), missing) in wanted.into_iter().zip(&missing) {
                if !missing.is_empty() {
                    self.draw_missing(of, missing, k, (&expected, &mut drawn_so_far)).await?;
                }
            }
            self.observer.end();
        }
        self.drop_unanswered()?;
        self.clean_anchors().await?;
        if of_negatives {
            self.warn_of_unwatched();
        }
        if takes_anchors {
            self.warn_of_cut();
            self.report_filter();
            self.drop_empty()
        } else {
            Ok(())
        }
    }

    fn prompts(&self, of: Of) -> (&[Example], &[Pool]) {
        match of {
            Of::Train => (&self.train, &self.pools),
            Of::HeldOut => (&self.held_out.examples, &self.held_out.pools),
            Of::Retained => (&self.retained.examples, &self.retained.pools),
        }
    }

    /// Indices of the prompts that need more samples to reach `k` answers.
    fn undrawn(&self, of: Of, k: usize) -> Vec<usize> {
        let (examples, pools) = self.prompts(of);
        let undrawn = |i: &usize| {
            let example = &examples[*i];
            let watched = of != Of::HeldOut || example.negative_ids.is_some();
            let sampled = watched && (of == Of::Retained || example.anchor_ids.is_empty());
            sampled && pools[*i].lacks(k)
        };
        (0..examples.len()).filter(undrawn).collect()
    }

    /// Samples these prompts' answers. Those sampled before an error are kept. The observer gets all answers
    /// so far whenever it asks for them.
    async fn draw_missing(
        &mut self,
        of: Of,
        missing: &[usize],
        k: usize,
        (expected, drawn_so_far): (&Expected, &mut (usize, usize)),
    ) -> Result<()> {
        let config = self.config;
        let seed = config.train.seed ^ if of == Of::Retained { RETAINED } else { 0 };
        let most = if of == Of::Retained { config.retained_tokens() } else { config.anchors.max_new_tokens };
        let settings = SamplingParams {
            max_new_tokens: most as u32,
            ..sample::sampling_params(&config.anchors, seed, &self.ends)
        };
        let Self { gpu, trainer, negative, train, pools, kept, counts, observer, .. } = self;
        let (forecast, held_out, retained) = (&mut self.forecast, &mut self.held_out, &mut self.retained);
        let decoder = &trainer.decoder;
        // Before the first step the policy is the model that is to be retained.
        let (room, pass, reader) = match of {
            Of::Retained => (self.batches.retain_room(gpu, decoder.config(), config), decoder.policy(), None),
            _ => (self.room, negative.pass(decoder), self.reader.as_ref()),
        };
        let sampler = Sampler { room, gpu, decoder, pass, settings, reader };
        // Held-out prompts are numbered after the training prompts. Only training anchors are counted.
        let (of_train, mut uncounted) = (*counts, *counts);
        let first = if of == Of::HeldOut { train.len() } else { 0 };
        let kept = [&kept[..], &held_out.kept, &retained.kept];
        let (examples, own, others): (&[Example], _, [&[Pool]; 2]) = match of {
            Of::Train => (train, pools, [&held_out.pools, &retained.pools]),
            Of::HeldOut => (&held_out.examples, &mut held_out.pools, [pools, &retained.pools]),
            Of::Retained => (&retained.examples, &mut retained.pools, [pools, &held_out.pools]),
        };
        let counts = if of == Of::Train { counts } else { &mut uncounted };
        let draw = |&i: &usize| {
            let example = &examples[i];
            let prompt = if of == Of::Retained { &example.prompt_ids } else { &example.sampling_ids };
            Draw { pool: i, index: (first + i) as u32, prompt }
        };
        let draws: Vec<Draw> = missing.iter().map(draw).collect();
        let mut each = |Drawn { answers, anchors, tokens }, own: &[Pool], counts: &AnchorCounts| {
            (drawn_so_far.0, drawn_so_far.1) = (drawn_so_far.0 + answers, drawn_so_far.1 + tokens);
            // Record the elapsed time first, then set the work that is left.
            forecast.did(Work::Draw, tokens as f64);
            let length = expected_length(drawn_so_far.0, drawn_so_far.1, most);
            let all = Growing { tokens: -(drawn_so_far.1 as f64), ..expected.draw };
            Expected { draw: all, ..*expected }.apply(forecast, length);
            tell(&mut **observer, forecast, Work::Draw, 0);
            // Answers that the filter refuses are sampled again, so only anchors are progress.
            advance(&mut **observer, anchors, tokens)?;
            if !observer.wants_anchors() {
                return Ok(());
            }
            let (pools, counts) = match of {
                Of::Train => ([own, others[0], others[1]], *counts),
                Of::HeldOut => ([others[0], own, others[1]], of_train),
                Of::Retained => ([others[0], others[1], own], of_train),
            };
            drawn(kept, pools, (counts, None, None))?.map_or(Ok(()), |state| observer.saved(state))
        };
        sampler.fill(own, &draws, k, counts, &mut each).await
    }

    /// Warns if most anchors have no end token: a model that trains on them learns not to stop.
    fn warn_of_cut(&mut self) {
        let anchors = || self.pools.iter().flat_map(|pool| &pool.anchors);
        let (cut, all) = (anchors().filter(|anchor| !anchor.ended).count(), anchors().count());
        if 2 * cut > all && self.config.anchors.max_new_tokens > OPENING {
            self.observer.warned(&format!(
                "{cut} of {all} anchors were cut at {} tokens and have no end token: raise {}, or the model \
                 learns answers that do not end",
                self.config.anchors.max_new_tokens,
                setting("max_new_tokens")
            ));
        }
    }

    /// Reports how many of the sampled answers the filter kept, and warns if they are fewer than half: then
    /// the model was not shown clearly what is wanted.
    fn report_filter(&mut self) {
        let rule = self.reader.as_ref().and_then(|reader| reader.filter.as_ref());
        let Some(rule) = rule.filter(|_| self.counts.drawn > 0) else { return };
        let AnchorCounts { drawn, empty, filtered, .. } = self.counts;
        let all = drawn - empty;
        let kept = all - filtered;
        let share = 100.0 * kept as f64 / all.max(1) as f64;
        let text = format!(
            "{kept} of {all} sampled answers ({share:.1} %) are anchors by the rule {rule} of {}",
            self.config.anchor_rule_setting()
        );
        if 2 * kept >= all {
            self.observer.noted(&text);
        } else {
            self.observer.warned(&format!(
                "{text}: show the model what is wanted with {}, or give answers that are, as \"anchors\" in \
                 the rows",
                setting("anchor_examples")
            ));
        }
    }

    /// Warns of held-out prompts without an anchor: the stop rule does not see them.
    fn warn_of_unwatched(&mut self) {
        let held_out = self.held_out.examples.iter().zip(&self.held_out.pools);
        let flagged: Vec<(&Example, &Pool)> = held_out.filter(|(e, _)| e.negative_ids.is_some()).collect();
        let mut without = flagged.iter().filter(|(_, pool)| pool.anchors.is_empty());
        let Some((first, _)) = without.next() else { return };
        let (count, line) = (1 + without.count(), first.line);
        let blind = if count == flagged.len() { ": the stop rule has no anchors to watch" } else { "" };
        let of = flagged.len();
        self.observer.warned(&format!(
            "{count} of {of} held-out prompts got no anchor in {} tries{blind}; the first is on line {line}",
            1 + RETRIES,
        ));
    }

    /// Drops retained prompts whose sample stayed empty.
    ///
    /// # Errors
    /// When none is left.
    pub(super) fn drop_unanswered(&mut self) -> Result<()> {
        let Retained { examples, pools, kept, .. } = &mut self.retained;
        let keep: Vec<bool> = pools.iter().map(|pool| !pool.anchors.is_empty()).collect();
        if !keep.is_empty() && !keep.contains(&true) {
            let fix = format!("give other prompts with {}, or raise the temperature", setting("retain.data"));
            let expected = "an answer to at least one ordinary prompt";
            return Err(Error::input(setting("retain.form"), expected, "only empty samples", fix));
        }
        parts_of(examples, &keep);
        parts_of(pools, &keep);
        parts_of(kept, &keep);
        Ok(())
    }

    /// Drops prompts whose samples were all empty, or all refused by the filter.
    fn drop_empty(&mut self) -> Result<()> {
        let keep = |examples: &[Example], pools: &[Pool]| -> Vec<bool> {
            let sampled = examples.iter().zip(pools);
            sampled.map(|(e, pool)| e.negative_ids.is_none() || !pool.anchors.is_empty()).collect()
        };
        let train = keep(&self.train, &self.pools);
        if !train.contains(&true) && self.cleaner.is_some() {
            let fix = format!(
                "show the model what is wanted with {}, or use all anchors with {}",
                setting("anchor_examples"),
                setting_to("anchors.choice", "all")
            );
            let expected = "an anchor that is not bad";
            return Err(Error::input(setting("anchors.choice"), expected, "none", fix));
        }
        if !train.contains(&true) {
            let fix = "raise the temperature, or change what is put before the prompt";
            let Some(rule) = self.reader.as_ref().and_then(|reader| reader.filter.as_ref()) else {
                let found = "only empty samples";
                return Err(Error::input("anchors", "at least one non-empty answer", found, fix));
            };
            let expected = format!("a sampled answer for which {rule} holds");
            let found = format!("none in {}", self.counts.drawn);
            let fix = format!(
                "show the model what is wanted with {}, or change the rule",
                setting("anchor_examples")
            );
            return Err(Error::input(self.config.anchor_rule_setting(), expected, found, fix));
        }
        let lines: Vec<usize> =
            self.train.iter().zip(&train).filter(|(_, keep)| !**keep).map(|(e, _)| e.line).collect();
        if let Some(first) = lines.first() {
            let why = match self.cleaner {
                Some(_) => "have no good anchor".into(),
                None => format!("got no anchor in {} tries", 1 + RETRIES),
            };
            self.observer.warned(&format!(
                "{} of {} training prompts {why} and are left out; the first is on line {first}",
                lines.len(),
                train.len(),
            ));
        }
        let eval = keep(&self.held_out.examples, &self.held_out.pools);
        parts_of(&mut self.train, &train);
        parts_of(&mut self.pools, &train);
        parts_of(&mut self.cached, &train);
        parts_of(&mut self.kept, &train);
        parts_of(&mut self.held_out.kept, &eval);
        parts_of(&mut self.held_out.examples, &eval);
        parts_of(&mut self.held_out.pools, &eval);
        Ok(())
    }

    /// Samples the anchors of this step's prompts again if they are due for a refresh.
    pub(super) async fn refresh_anchors(&mut self, step: usize, batch: &[usize]) -> Result<()> {
        let a = &self.config.anchors;
        let Some(start) = a.online_start_step.filter(|&s| step >= s && self.takes_anchors()) else {
            return Ok(());
        };
        let due = |&i: &usize| {
            let drawn = self.pools[i].step;
            self.train[i].anchor_ids.is_empty() && (drawn < start || step >= drawn + a.refresh_every)
        };
        let mut stale: Vec<usize> = batch.iter().copied().filter(due).collect();
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
        let settings = sample::sampling_params(a, self.config.train.seed, &self.ends);
        let old: Vec<Pool> = stale.iter().map(|&i| self.pools[i].clone()).collect();
        let k = self.config.method.num_samples;
        let fresh = (a.fresh_share * k as f64).round().max(1.0) as usize;
        let stored = k.saturating_sub(fresh);
        stale.iter().for_each(|&i| self.pools[i].renew(step, stored));
        let prompt = |i: usize| match instructed {
            true => &self.train[i].sampling_ids,
            false => &self.train[i].prompt_ids,
        };
        let draws: Vec<Draw> =
            stale.iter().map(|&i| Draw { pool: i, index: i as u32, prompt: prompt(i) }).collect();
        let reader = self.reader.as_ref();
        let sampler = Sampler { room: self.room, gpu: self.gpu, decoder, pass, settings, reader };
        let observer = &mut *self.observer;
        let alive = &mut |_, _: &[Pool], _: &AnchorCounts| observer.advance(0, 0);
        sampler.fill(&mut self.pools, &draws, k, &mut self.counts, alive).await?;
        self.clean_renewed(&stale).await?;
        for (&i, old) in stale.iter().zip(old) {
            // If none is left, because all new samples are empty, refused or bad, keep the earlier anchors.
            if self.pools[i].anchors.is_empty() {
                self.pools[i].anchors = old.anchors;
            } else {
                self.cached[i] = None;
            }
        }
        self.score_missing(&stale).await?;
        self.report_anchors(&stale)
    }

    /// Passes the examples' anchors and their reference log-probs to the observer.
    pub(super) fn report_anchors(&mut self, examples: &[usize]) -> Result<()> {
        if !self.takes_anchors() {
            return Ok(());
        }
        let scored = |i: usize| self.cached[i].as_deref().unwrap_or_default();
        examples.iter().try_for_each(|&i| self.observer.anchors(&self.train[i], &self.pools[i], scored(i)))
    }
}
