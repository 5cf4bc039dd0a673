//! The training loop: submits a step, reads the results of the one before, evaluates and takes the state.

use std::collections::HashSet;

use web_time::Instant;

use super::anchors::Pool;
use super::best::Best;
use super::cleaner::How;
use super::collapse::Collapse;
use super::evaluate::eval_anchors;
use super::flight::{Flight, Landed, Micro, Sums, land_all};
use super::forecast::{Expected, Growing, Work};
use super::metrics::mean;
use super::negatives::candidates;
use super::observer::{Phase, Wish};
use super::order::Order;
use super::responses::{held_out_responses, loss_responses};
use super::run::{Course, Outcome, Run, group, tell};
use super::state::State;
use super::stop::{StopReason, StopRule};
use super::trainer::{MicroBatch, RetainedGroups};
use super::weights::{token_weights, weighted};
use crate::data::Example;
use crate::data::packing::{Group, split};
use crate::gpu::Tier;
use crate::loss::{Method, Takes};
use crate::optim::Schedule;
use crate::score::Scored;
use crate::{Error, Result};

impl<'a> Run<'a> {
    /// Trains all steps, or those left after `resume`.
    pub(super) async fn train(mut self, resume: Option<&State>) -> Result<Outcome> {
        let t = &self.config.train;
        let mut course = Course {
            step: 0,
            rule: StopRule::of(self.config, self.asked.len()),
            best: Best::default(),
            before: None,
            sums: Sums::default(),
            collapse: Collapse::default(),
        };
        if let Some(state) = resume {
            self.restore(state, &mut course)?;
        }
        let (mut order, total) = self.order();
        self.expect(course.step, false).apply(&mut self.forecast, 0.0);
        let (peak, warmup) = (self.config.learning_rate(), t.warmup(total));
        let schedule = Schedule { kind: t.lr_scheduler_type, peak, warmup, total };
        (0..course.step).for_each(|_| drop(self.candidates(&mut order)));
        let watched = !self.held_out.examples.is_empty();
        if resume.is_none() {
            if watched {
                let first = self.evaluate(0).await?;
                course.rule.judge(&first);
                course.best.keep(self.gpu, &self.trainer.decoder, 0, Some(first.clone()))?;
                course.before = Some(first);
            }
            if self.observer.wants_state(0) {
                self.keep_state(&course).await?;
            }
        }
        self.observer.begin(Phase::Training, total - course.step.min(total));
        let reason = self.steps(&mut course, total, &schedule, &mut order, watched).await?;
        self.observer.end();
        self.report_generated();
        let Course { best, before, sums, .. } = course;
        if sums.skipped > 0 && sums.skipped == sums.steps {
            let found =
                format!("none of {}: the loss or gradient of each step was NaN or infinite", sums.steps);
            let fix = "lower the learning rate; check the GPU with `aweigh selftest`, and the model with \
                       `aweigh score`";
            return Err(Error::input("training", "a step with a finite loss and gradient", found, fix));
        }
        let (kept_step, after) = best.restore(self.gpu, &self.trainer.decoder).unwrap_or((sums.steps, None));
        Ok(Outcome {
            decoder: self.trainer.decoder,
            reason,
            steps: sums.steps,
            kept_step,
            before,
            after,
            anchors: self.counts,
            bad_anchors: self.cleaner.as_ref().filter(|c| c.how != How::Unknown).map(|c| c.share),
            constants: self.constants,
            num_tokens: sums.num_tokens,
            train_seconds: sums.train_seconds,
        })
    }

    /// The order of the examples, and the number of steps of the whole run.
    fn order(&self) -> (Order, usize) {
        let (order, total) = Order::of(self.train.len(), &self.config.train);
        let clusters = self.negatives.as_ref().map_or(&[][..], |negatives| &negatives.clusters[..]);
        (order.balanced(clusters), total)
    }

    /// The candidates for the next step, and how many of them it takes.
    fn candidates(&self, order: &mut Order) -> (Vec<usize>, usize) {
        let mut all = order.next();
        let keep = all.len();
        let times = candidates(self.config.negative_choice());
        if times > 1 {
            (1..times).for_each(|_| all.extend(order.next()));
            let mut seen = HashSet::new();
            all.retain(|i| seen.insert(*i));
        }
        (all, keep)
    }

    /// The work left in the run after `done` steps, if the stop rule does not end it earlier. With `before`,
    /// the work before the first step is included.
    pub(super) fn expect(&self, done: usize, before: bool) -> Expected {
        let (config, method) = (self.config, self.method());
        let k = if method.takes() == Takes::Anchors { config.method.num_samples } else { 0 };
        let of = |examples: &[Example], pools: &[Pool], k: usize, held_out: bool| {
            let mut sum = Growing::default();
            let mut lacking = 0;
            for (example, pool) in examples.iter().zip(pools) {
                let responses = match held_out {
                    true => held_out_responses(method, example, pool.ids()),
                    false => loss_responses(method, example, pool.ids()),
                };
                let own: usize = responses.iter().map(|ids| ids.len()).sum();
                let sampled = example.anchor_ids.is_empty() && pool.lacks(k);
                let missing = if sampled { k - pool.anchors.len() } else { 0 };
                lacking += missing;
                sum.tokens += (example.prompt_ids.len() + own) as f64;
                sum.answers += missing as f64;
            }
            (sum, lacking as f64)
        };
        let (train, to_draw) = of(&self.train, &self.pools, k, false);
        let eval_k = if method.is_of_negatives() { eval_anchors(config) } else { 0 };
        let (held_out, to_watch) = of(&self.held_out.examples, &self.held_out.pools, eval_k, true);
        let (order, total) = self.order();
        let steps = total.saturating_sub(done) as f64;
        let every = config.stop.eval_steps;
        let evaluations = (total.div_ceil(every).saturating_sub(done / every) + usize::from(before)) as f64;
        let answers = (self.asked.len() + self.ordinary.len()) as f64 * evaluations;
        // Assume answers as long as the anchors so far, or of the maximum length if there are none.
        let lengths = || self.pools.iter().flat_map(Pool::ids).map(<[u32]>::len);
        let mean = match lengths().count() {
            0 => config.anchors.max_new_tokens as f64,
            count => lengths().sum::<usize>() as f64 / count as f64,
        };
        let mean = mean.min(config.output.completion_tokens as f64);
        let lacking = self.retained.pools.iter().filter(|pool| pool.lacks(1)).count() as f64;
        let answered = self.retained.pools.iter().flat_map(Pool::ids).map(<[u32]>::len).sum::<usize>();
        let prompts: usize = self.retained.examples.iter().map(|example| example.prompt_ids.len()).sum();
        let retained = Growing { tokens: (prompts + answered) as f64, answers: lacking };
        let to_retain = if before { lacking } else { 0.0 };
        let of_step = config.train.gradient_accumulation_steps * config.retain.batch_size;
        let passes = steps * of_step as f64 / self.retained.examples.len().max(1) as f64;
        let references = if before && self.has_reference() { train } else { Growing::default() };
        let references = if before { references.plus(retained) } else { references };
        Expected {
            draw: Growing { tokens: 0.0, answers: to_retain + if before { to_draw + to_watch } else { 0.0 } },
            score: held_out.times(evaluations).plus(references),
            train: train.times(steps / order.steps_per_epoch() as f64).plus(retained.times(passes)),
            answer: Growing { tokens: answers * mean, answers: 0.0 },
        }
    }

    /// Passes the state to the observer. No step may be in flight.
    async fn keep_state(&mut self, course: &Course) -> Result<()> {
        let state = self.state(course).await?;
        self.observer.saved(state)
    }

    async fn steps(
        &mut self,
        course: &mut Course,
        total: usize,
        schedule: &Schedule,
        order: &mut Order,
        watched: bool,
    ) -> Result<StopReason> {
        let (mut flying, mut last) = (None, None);
        // A submit to a software adapter returns when the work is done, so a step's time has passed when it
        // was submitted.
        let done_at_once = self.gpu.tier() == Tier::Software;
        for step in course.step..total {
            let candidates = self.candidates(order);
            let batch = self.choose((step, total), candidates).await?;
            self.refresh_anchors(step, &batch).await?;
            self.observer.chosen(step, &batch.iter().map(|&i| &self.train[i]).collect::<Vec<_>>());
            let done = step + 1;
            let submitted = self.submit(step, &batch, schedule.rate(step), order.epochs(done)).await?;
            if done_at_once {
                self.forecast.did(Work::Train, submitted.tokens as f64);
            }
            let wish = self.observer.wish();
            let ends = done == total || wish == Wish::Finish;
            let judged = watched && (done % self.config.stop.eval_steps == 0 || ends);
            let wanted = !ends && (self.observer.wants_state(done) || wish == Wish::Stop);
            // A step's results are read after the next step is submitted, or if the state after it is needed.
            let mut due: Vec<Flight> = flying.replace(submitted).into_iter().collect();
            if judged || wanted || ends {
                due.extend(flying.take());
            }
            for landed in land_all(due, &mut last).await? {
                let method = (self.method(), self.loss);
                let retain = (&self.config.retain, &self.retained.start[..]);
                let metrics = course.sums.add(method, retain, &landed);
                self.observer.step(&metrics)?;
                let newly = if done_at_once { 0 } else { landed.tokens };
                tell(&mut *self.observer, &mut self.forecast, Work::Train, newly);
                self.observer.advance(1, landed.tokens)?;
                if landed.is_finite() {
                    if let Some(text) = course.collapse.see(&metrics, self.config.max_kl()) {
                        self.observer.warned(&format!("step {}: {text}", landed.step + 1));
                    }
                } else {
                    self.warn_of_skipped(&landed);
                    if course.sums.skipped_in_a_row >= self.config.stop.max_skipped {
                        let what = self.first_that_is_not_finite(landed.step, &landed.batch).await?;
                        self.observer.warned(&what);
                        return Ok(StopReason::Diverged);
                    }
                }
            }
            course.step = done;
            if judged {
                let now = self.evaluate(done).await?;
                let verdict = course.rule.judge(&now);
                if verdict.best || !self.config.stop.enabled {
                    course.best.keep(self.gpu, &self.trainer.decoder, done, Some(now))?;
                }
                if let Some(why) = verdict.stop {
                    return Ok(why);
                }
            }
            if wanted {
                self.keep_state(course).await?;
            }
            match wish {
                Wish::GoOn => {}
                _ if done == total => {}
                Wish::Finish => return Ok(StopReason::Requested),
                Wish::Stop => return Err(Error::Interrupted),
            }
        }
        Ok(StopReason::Finished)
    }

    fn warn_of_skipped(&mut self, landed: &Landed) {
        let lines: Vec<String> = landed.offenders().iter().map(|&i| self.train[i].line.to_string()).collect();
        let (step, lines) = (landed.step + 1, lines.join(", "));
        self.observer.warned(&format!(
            "step {step} was skipped, because its loss or gradient is NaN or infinite; its examples are on \
             lines {lines}"
        ));
    }

    /// Computes a step's gradients again, and names the tensor with NaN or infinity: a weight, or the first
    /// such gradient in the backward pass.
    async fn first_that_is_not_finite(&mut self, step: usize, batch: &[usize]) -> Result<String> {
        let layout = self.trainer.decoder.layout().clone();
        let bad = |all: Vec<Vec<f32>>| {
            let last = all.iter().rposition(|values| values.iter().any(|v| !v.is_finite()))?;
            Some(layout.entries()[last].name())
        };
        if let Some(name) = bad(self.trainer.decoder.values().read(self.gpu, &layout).await?) {
            return Ok(format!(
                "{name} has weights that are NaN or infinite: a lower learning_rate may help"
            ));
        }
        for micro in self.accumulate(step, batch).await?.0 {
            micro.outcome.await?;
        }
        Ok(match bad(self.trainer.optimizer.gradients().read(self.gpu, &layout).await?) {
            Some(name) => format!("the gradient of {name} is the first that is NaN or infinite"),
            None => "recomputed, the last step's gradients are finite: the GPU may be unstable".into(),
        })
    }

    /// Submits a step: its micro-batches, the optimizer step, and the update of moving references.
    async fn submit(&mut self, step: usize, batch: &[usize], rate: f64, epoch: f64) -> Result<Flight<'a>> {
        let started = Instant::now();
        let (micro, tokens, kl) = self.accumulate(step, batch).await?;
        self.forget_moving(batch);
        let norm = self.trainer.step(rate)?;
        for reference in [Some(&self.negative), self.positive.as_ref()].into_iter().flatten() {
            reference.follow(self.gpu, &self.trainer.decoder, step + 1)?;
        }
        Ok(Flight { step, batch: batch.to_vec(), rate, epoch, tokens, started, micro, kl, norm })
    }

    /// Submits a step's gradients. Returns its micro-batches, their packed tokens, and KTO's KL estimate.
    async fn accumulate(
        &mut self,
        step: usize,
        batch: &[usize],
    ) -> Result<(Vec<Micro<'a>>, usize, Option<f64>)> {
        self.score_missing(batch).await?;
        let kl = self.kl(batch).await?;
        let (method, t) = (self.method(), &self.config.train);
        let batches: Vec<&[usize]> = batch.chunks(t.per_device_train_batch_size).collect();
        let retained = self.retained_of(step, batches.len());
        let scale = self.config.retain.weight / retained.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let mut micro = Vec::new();
        let mut all_tokens = 0;
        for (own, retained) in batches.into_iter().zip(retained) {
            let of_loss = own.iter().map(|&i| group(method, &self.train[i], &self.pools[i]));
            let groups: Vec<Group> =
                of_loss.chain(retained.iter().map(|&i| self.retained.group(i))).collect();
            all_tokens += groups.iter().map(Group::tokens).sum::<usize>();
            for range in split(&groups, self.batches.step_budget, usize::MAX) {
                // The batch's own groups come first, then the retained ones.
                let of_retained = [range.start, range.end].map(|i| i.saturating_sub(own.len()));
                let of_own = [range.start, range.end].map(|i| i.min(own.len()));
                let (own, groups_of_loss) =
                    (&own[of_own[0]..of_own[1]], groups[of_own[0]..of_own[1]].to_vec());
                let retained = &retained[of_retained[0]..of_retained[1]];
                let cached = || own.iter().map(|&i| self.cached[i].as_deref().unwrap_or_default());
                let factor = |i: usize| {
                    let factors = self.negatives.as_ref().map(|negatives| &negatives.factors);
                    factors.and_then(|factors| factors.get(i)).copied().unwrap_or(1.0)
                };
                let weights: Vec<Vec<Vec<f32>>> = own
                    .iter()
                    .map(|&i| token_weights(method, &self.train[i], &self.pools[i], factor(i)))
                    .collect();
                // For KTO, the references have also scored another example's answer, behind the loss's.
                let of_loss = cached().zip(&weights).flat_map(|(scored, weights)| scored.iter().zip(weights));
                let reference = of_loss.map(|(scored, weights)| weighted(scored, weights)).collect();
                let start = |&i: &usize| self.retained.start[i].token_logps.iter().copied();
                let of_range = MicroBatch {
                    reference,
                    weights: weights.into_iter().flatten().flatten().collect(),
                    groups: groups_of_loss,
                    retained: (!retained.is_empty()).then(|| RetainedGroups {
                        groups: retained.iter().map(|&i| self.retained.group(i)).collect(),
                        start: retained.iter().flat_map(start).collect(),
                        form: self.config.retain.form,
                        scale,
                    }),
                    kl: kl.unwrap_or(0.0),
                };
                let tokens = |scored: &[Scored]| scored.iter().map(|r| r.token_logps.clone()).collect();
                let references = cached().map(tokens).collect();
                let outcome = self.trainer.accumulate(&of_range, batch.len())?;
                micro.push(Micro { outcome, references, retained: retained.to_vec() });
            }
        }
        Ok((micro, all_tokens, kl))
    }

    /// Indices of the retained examples of each batch of a step.
    pub(super) fn retained_of(&self, step: usize, batches: usize) -> Vec<Vec<usize>> {
        let t = &self.config.train;
        let size = self.config.retain.batch_size;
        let first = step * t.gradient_accumulation_steps;
        (first..first + batches).map(|number| self.retained.of_batch(number, size, t.seed)).collect()
    }

    /// KTO's estimate of KL(policy ‖ reference) over a step, as in TRL: the mean log-ratio of answers to
    /// other prompts, at least 0.
    async fn kl(&mut self, batch: &[usize]) -> Result<Option<f64>> {
        if self.method() != Method::Kto {
            return Ok(None);
        }
        let other = |i: usize| self.train[i].kl_ids.as_deref();
        let groups: Vec<Group> = batch
            .iter()
            .map(|&i| Group { prompt: &self.train[i].prompt_ids, responses: other(i).into_iter().collect() })
            .collect();
        let t = &self.config.train;
        let mut ratios = Vec::new();
        for range in split(&groups, self.batches.step_budget, t.per_device_train_batch_size) {
            let scored = self.trainer.score(&groups[range.clone()]).await?;
            let reference = batch[range].iter().map(|&i| self.cached[i].iter().flatten().last());
            let pairs = scored.iter().flatten().zip(reference.flatten());
            ratios
                .extend(pairs.map(|(policy, reference)| f64::from(policy.logp) - f64::from(reference.logp)));
        }
        Ok(Some(mean(ratios.into_iter()).max(0.0)))
    }
}
