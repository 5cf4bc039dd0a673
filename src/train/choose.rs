//! Chooses the flagged answers of each step, by the settings in `[negatives]`.

use rand::RngExt;

use super::anchors::{Anchor, AnchorCounts, Draw, Pool, Sampler};
use super::clean::{excerpt, percent, unclear};
use super::cleaner::{Cleaner, How};
use super::negatives::{
    NEAR, Negatives, Use, dice, highest, likely_and_varied, paired, proposals, remember, walk,
};
use super::responses::{loss_responses, parts_of};
use super::run::Run;
use crate::config::NegativeChoice;
use crate::data::Example;
use crate::data::packing::{Group, split};
use crate::error::setting;
use crate::eval::{clusters, mixture};
use crate::sample;
use crate::score::{Scored, mean_states_in};
use crate::{Error, Result};

/// Changes the seed, so that answers under the harmful instruction use other random numbers than anchors.
const HARMFUL: u32 = 0x0bad_a115;
/// The flagged answers of each verdict that are shown.
const SHOWN: usize = 3;

impl Run<'_> {
    /// What the choice needs to know before the first step. Drops rows whose flagged answer is like the
    /// anchors, if the settings say so.
    pub(super) async fn prepare_negatives(&mut self) -> Result<()> {
        if self.negatives.is_some() || !self.method().is_of_negatives() {
            return Ok(());
        }
        let (choice, settings) = (self.config.negative_choice(), &self.config.negatives);
        let mut negatives = Negatives::default();
        let mcns = choice == NegativeChoice::Mcns;
        let compared = settings.balance > 0 || mcns;
        let mut states = if compared { self.prompt_states().await? } else { Vec::new() };
        if choice == NegativeChoice::Debiased {
            // Nothing is awaited between this and the end: a run that is interrupted drops no row twice.
            let keep = self.false_negatives().await?;
            parts_of(&mut states, &keep);
            parts_of(&mut self.train, &keep);
            parts_of(&mut self.pools, &keep);
            parts_of(&mut self.cached, &keep);
            parts_of(&mut self.kept, &keep);
        }
        if compared {
            if settings.balance > 0 {
                negatives.clusters = clusters::clusters(&states, settings.balance, self.config.train.seed);
            }
            if mcns {
                negatives.near = clusters::nearest(&states, NEAR);
            }
        }
        let count = self.train.len();
        match choice {
            NegativeChoice::Variance => negatives.history = vec![Vec::new(); count],
            NegativeChoice::Mcns => negatives.used = vec![Use::Own; count],
            NegativeChoice::Generated => {
                negatives.used = vec![Use::Own; count];
                negatives.pools = vec![Pool::default(); count];
            }
            _ => {}
        }
        if !negatives.clusters.is_empty() {
            let mut sizes = vec![0; 1 + negatives.clusters.iter().max().copied().unwrap_or(0)];
            negatives.clusters.iter().for_each(|cluster| sizes[*cluster] += 1);
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
            let text =
                format!("{} clusters of prompts are drawn from as often: {}", sizes.len(), sizes.join(", "));
            self.observer.noted(&text);
        }
        self.negatives = Some(negatives);
        self.remember_own();
        Ok(())
    }

    /// Keeps the rows' own flagged answers, before others take their place, and puts those in place that are
    /// used now.
    pub(super) fn remember_own(&mut self) {
        let Some(negatives) = &mut self.negatives else { return };
        let flagged = |example: &Example| (example.negative_ids.clone(), example.negative_weights.clone());
        if !negatives.used.is_empty() {
            negatives.own = self.train.iter().map(flagged).collect();
        }
        for i in 0..negatives.used.len() {
            self.put_flagged(i);
        }
    }

    /// Puts the flagged answer in place that the example is trained on now.
    fn put_flagged(&mut self, i: usize) {
        let Some(Negatives { used, own, .. }) = &self.negatives else { return };
        let (ids, weights) = match &used[i] {
            Use::Own => own[i].clone(),
            Use::Of(other) => own[*other].clone(),
            Use::Sampled(ids) => (Some(ids.clone()), None),
        };
        if self.train[i].negative_ids != ids {
            self.cached[i] = None;
        }
        (self.train[i].negative_ids, self.train[i].negative_weights) = (ids, weights);
    }

    fn now_use(&mut self, i: usize, next: Use) {
        if let Some(negatives) = &mut self.negatives
            && negatives.used[i] != next
        {
            negatives.used[i] = next;
            self.put_flagged(i);
        }
    }

    /// The examples of a step among its candidates, at most `keep`. Sets the flagged answers that they are
    /// trained on, and the factors of their weights.
    pub(super) async fn choose(
        &mut self,
        (step, total): (usize, usize),
        (candidates, keep): (Vec<usize>, usize),
    ) -> Result<Vec<usize>> {
        match self.config.negative_choice() {
            NegativeChoice::Uniform | NegativeChoice::Debiased => return Ok(candidates),
            NegativeChoice::Hard => {
                let scores = self.flagged_logps(&candidates).await?;
                return Ok(highest(&candidates, &scores, keep));
            }
            NegativeChoice::Variance => {
                let logps = self.flagged_logps(&candidates).await?;
                let Some(Negatives { history, .. }) = &mut self.negatives else { return Ok(candidates) };
                let score = |(&i, logp): (&usize, &f64)| {
                    remember(&mut history[i], *logp);
                    likely_and_varied(&history[i], step, total)
                };
                let scores: Vec<f64> = candidates.iter().zip(&logps).map(score).collect();
                return Ok(highest(&candidates, &scores, keep));
            }
            NegativeChoice::Mcns => self.walk_chains(step, &candidates).await?,
            NegativeChoice::Generated => self.use_generated(step, &candidates).await?,
            NegativeChoice::Paired => {
                let method = self.method();
                let groups = candidates.iter().map(|&i| Group {
                    prompt: &self.train[i].prompt_ids,
                    responses: loss_responses(method, &self.train[i], self.pools[i].ids()),
                });
                let groups: Vec<Group> = groups.collect();
                let mut logps = Vec::new();
                for range in self.step_batches(&groups) {
                    let scored = self.trainer.score(&groups[range]).await?;
                    logps.extend(scored.iter().map(|all| {
                        let (flagged, anchors) = all
                            .split_last()
                            .map_or((f64::NAN, &[][..]), |(last, rest)| (per_token(last), rest));
                        let sum: f64 = anchors.iter().map(per_token).sum();
                        (sum / anchors.len().max(1) as f64, flagged)
                    }));
                }
                let Some(negatives) = &mut self.negatives else { return Ok(candidates) };
                negatives.factors.resize(self.train.len(), 1.0);
                for (&i, factor) in candidates.iter().zip(paired(&logps)) {
                    negatives.factors[i] = factor;
                }
            }
        }
        Ok(candidates)
    }

    /// Ranges of groups that fit in the workspace of a step.
    fn step_batches(&self, groups: &[Group]) -> Vec<std::ops::Range<usize>> {
        split(groups, self.batches.step_budget, self.config.train.per_device_train_batch_size)
    }

    /// The policy's log-prob per token of pairs of a prompt and a flagged answer: of the first example's
    /// prompt and the second one's answer.
    async fn pair_logps(&mut self, pairs: &[(usize, usize)]) -> Result<Vec<f64>> {
        let own = self.negatives.as_ref().map_or(&[][..], |negatives| &negatives.own[..]);
        let answer = |j: usize| own.get(j).map_or(&self.train[j].negative_ids, |(ids, _)| ids);
        let group = |&(i, j): &(usize, usize)| Group {
            prompt: &self.train[i].prompt_ids,
            responses: answer(j).iter().map(Vec::as_slice).collect(),
        };
        let groups: Vec<Group> = pairs.iter().map(group).collect();
        let mut logps = Vec::new();
        for range in self.step_batches(&groups) {
            let scored = self.trainer.score(&groups[range]).await?;
            logps.extend(scored.iter().map(|all| all.first().map_or(f64::NEG_INFINITY, per_token)));
        }
        Ok(logps)
    }

    async fn flagged_logps(&mut self, examples: &[usize]) -> Result<Vec<f64>> {
        self.pair_logps(&examples.iter().map(|&i| (i, i)).collect::<Vec<_>>()).await
    }

    /// Lets the chain of each example walk a few proposals further.
    async fn walk_chains(&mut self, step: usize, examples: &[usize]) -> Result<()> {
        let (count, context) = (self.train.len(), self.trainer.decoder.config().context());
        let Some(Negatives { near, used, own, .. }) = &self.negatives else { return Ok(()) };
        let mut chains = Vec::new();
        let mut pairs = Vec::new();
        for &i in examples {
            let mut rng = dice(self.config.train.seed, step, i);
            let at = if let Use::Of(at) = used[i] { at } else { i };
            let fits = |j: &usize| {
                own[*j].0.as_ref().is_some_and(|ids| self.train[i].prompt_ids.len() + ids.len() <= context)
            };
            let proposed: Vec<usize> =
                proposals(&mut rng, &near[i], count).into_iter().filter(fits).collect();
            pairs.extend([at].iter().chain(&proposed).map(|&j| (i, j)));
            chains.push((i, at, proposed, rng));
        }
        pairs.sort_unstable();
        pairs.dedup();
        let logps = self.pair_logps(&pairs).await?;
        for (i, at, proposed, mut rng) in chains {
            let logp = |j: usize| pairs.binary_search(&(i, j)).map_or(f64::NEG_INFINITY, |at| logps[at]);
            let Some(Negatives { near, .. }) = &self.negatives else { return Ok(()) };
            let end = walk(&mut rng, at, &proposed, (&near[i], count), &logp);
            self.now_use(i, if end == i { Use::Own } else { Use::Of(end) });
        }
        Ok(())
    }

    /// Samples the missing or outdated answers of these examples under the harmful instruction, keeps the bad
    /// ones, and decides by the settings' share which examples are trained on theirs.
    async fn use_generated(&mut self, step: usize, examples: &[usize]) -> Result<()> {
        // Answers that nothing judges are not flagged.
        if self.cleaner.as_ref().is_none_or(|cleaner| cleaner.how == How::Unknown) {
            return Ok(());
        }
        let every = self.config.anchors.refresh_every;
        let Some(Negatives { pools, .. }) = &self.negatives else { return Ok(()) };
        let due = |&i: &usize| pools[i].generation == 0 || step >= pools[i].step + every;
        let mut stale: Vec<usize> = examples.iter().copied().filter(due).collect();
        // A balanced step may have an example twice.
        stale.sort_unstable();
        stale.dedup();
        if !stale.is_empty() {
            self.generate(step, &stale).await?;
        }
        for &i in examples {
            let share = self.config.negatives.fresh_share;
            let fresh = dice(self.config.train.seed ^ HARMFUL, step, i).random::<f64>() < share;
            let sampled = self.negatives.as_ref().and_then(|n| n.pools[i].anchors.first()).filter(|_| fresh);
            let next = sampled.map_or(Use::Own, |anchor| Use::Sampled(anchor.ids.clone()));
            self.now_use(i, next);
        }
        Ok(())
    }

    async fn generate(&mut self, step: usize, stale: &[usize]) -> Result<()> {
        self.trainer.put_away().await?;
        let Some(mut negatives) = self.negatives.take() else { return Ok(()) };
        stale.iter().for_each(|&i| negatives.pools[i].renew(step, 0));
        {
            let Self { gpu, trainer, train, observer, config, batches, .. } = self;
            let decoder = &trainer.decoder;
            let room = batches.harmful_room(gpu, decoder.config(), config);
            let settings = sample::sampling_params(&config.anchors, config.train.seed ^ HARMFUL, &self.ends);
            let draw = |&i: &usize| Draw { pool: i, index: i as u32, prompt: &train[i].harmful_ids };
            let draws: Vec<Draw> = stale.iter().map(draw).collect();
            let sampler = Sampler { room, gpu, decoder, pass: decoder.policy(), settings, reader: None };
            let alive = &mut |_, _: &[Pool], _: &AnchorCounts| observer.advance(0, 0);
            sampler.fill(&mut negatives.pools, &draws, 1, &mut AnchorCounts::default(), alive).await?;
        }
        let Some(Cleaner { how, .. }) = &self.cleaner else { return Ok(()) };
        let of: Vec<(&Example, &[Anchor])> =
            stale.iter().map(|&i| (&self.train[i], &negatives.pools[i].anchors[..])).collect();
        let scores = self.scores_by(how, &of, self.batches.following).await?;
        for (&i, scores) in stale.iter().zip(scores) {
            let answers = &mut negatives.pools[i].anchors;
            negatives.sampled.0 += answers.len();
            let mut bad = scores.into_iter().map(|score| how.calls_bad(score));
            answers.retain(|_| bad.next().unwrap_or(false));
            negatives.sampled.1 += answers.len();
        }
        self.negatives = Some(negatives);
        Ok(())
    }

    /// The hidden state of each training prompt at its last token, before the first step.
    async fn prompt_states(&mut self) -> Result<Vec<Vec<f32>>> {
        let Some(capacity) = self.batches.scoring else { return Ok(Vec::new()) };
        let Self { gpu, trainer, train, observer, .. } = self;
        // The state that predicts an answer's first token is that of the prompt's last.
        let first = |example: &'_ Example| example.negative_ids.as_ref().map(|ids| ids[..1].to_vec());
        let answers: Vec<Vec<u32>> = train.iter().map(|e| first(e).unwrap_or_else(|| vec![0])).collect();
        let groups: Vec<Group> = train
            .iter()
            .zip(&answers)
            .map(|(e, ids)| Group { prompt: &e.prompt_ids, responses: vec![ids] })
            .collect();
        let (decoder, mut alive) = (&trainer.decoder, |_, _| observer.advance(0, 0));
        let room = (self.batches.score_budget, capacity);
        let states = mean_states_in(gpu, decoder, decoder.policy(), &groups, room, &mut alive).await?;
        Ok(states.into_iter().map(|mut states| states.swap_remove(0)).collect())
    }

    /// Which rows to keep: those whose flagged answer is not like the anchors. How many are is estimated as
    /// for anchors, with the two lists exchanged.
    async fn false_negatives(&mut self) -> Result<Vec<bool>> {
        let all: Vec<usize> = (0..self.train.len()).collect();
        let (flagged, anchors) = self.states(&all).await?;
        let all_flagged: Vec<&[f32]> = flagged.iter().map(Vec::as_slice).collect();
        let anchors: Vec<&[f32]> = anchors.iter().flatten().map(Vec::as_slice).collect();
        self.check_enough(flagged.len(), anchors.len(), "negatives.choice")?;
        let found = mixture::estimate(&anchors, &all_flagged, self.config.train.seed);
        if !found.tells() {
            let key = setting("negatives.choice");
            self.observer.warned(&unclear(&found, "flagged answers", "anchors", &key));
            return Ok(vec![true; self.train.len()]);
        }
        let worst = found.worst();
        let mut keep = vec![true; self.train.len()];
        worst.iter().for_each(|&i| keep[i] = false);
        let text = format!(
            "{} of the flagged answers are like the anchors by estimate: {} of {} rows are left out",
            percent(found.share),
            worst.len(),
            keep.len()
        );
        if !keep.contains(&true) {
            let fix = "check the rows' verdicts, or what is put before the prompt for sampling anchors";
            let expected = "flagged answers that differ from the anchors";
            return Err(Error::input(setting("negatives.choice"), expected, "none", fix));
        }
        self.observer.noted(&text);
        for &i in worst.iter().take(SHOWN) {
            if let (Some(reader), Some(ids)) = (&self.reader, &self.train[i].negative_ids) {
                let text = reader.tokenizer.decode_answer(&self.train[i].prompt_ids, ids)?;
                let line = self.train[i].line;
                self.observer.noted(&format!("  left out, line {line}: {}", excerpt(&text)));
            }
        }
        Ok(keep)
    }

    /// Says what became of the answers under the harmful instruction.
    pub(super) fn report_generated(&mut self) {
        if let Some(Negatives { sampled: (all @ 1.., bad), .. }) = self.negatives {
            self.observer.noted(&format!(
                "{bad} of {all} answers under the harmful instruction were bad, and flagged"
            ));
        }
    }
}

/// The log-prob per token.
fn per_token(scored: &Scored) -> f64 {
    f64::from(scored.logp) / scored.token_logps.len().max(1) as f64
}
