//! Finds anchors that are bad themselves. Anchors are the model's own answers, and nobody has looked at them:
//! some may be like the flagged ones.

use super::anchors::{Anchor, RETRIES};
use super::cleaner::{Cleaned, Cleaner, How, Judged};
use super::responses::loss_responses;
use super::run::Run;
use crate::config::AnchorChoice;
use crate::data::packing::Group;
use crate::data::{Example, Prompt};
use crate::error::setting;
use crate::eval::mixture::{self, Mixture};
use crate::eval::stats::{Estimate, mean};
use crate::loss::Takes;
use crate::model::Capacity;
use crate::score::mean_states_in;
use crate::{Error, Result};

/// The anchors of each verdict that are shown.
const SHOWN: usize = 3;

/// The beginning of a text, on one line.
pub(super) fn excerpt(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = words.chars().take(70).collect();
    if short.len() < words.len() { format!("{short} ...") } else { short }
}

/// A share with its interval.
pub(super) fn percent(share: Estimate) -> String {
    let [value, low, high] = [share.value, share.low, share.high].map(|share| 100.0 * share);
    format!("{value:.1} % [{low:.1}, {high:.1}]")
}

/// A warning that the share of a mixture is not to be believed: of `these` answers that are like `those`.
pub(super) fn unclear(found: &Mixture, these: &str, those: &str, key: &str) -> String {
    format!(
        "{key}: the model's hidden states do not tell {these} from {those} (AUROC {:.2}, and {:.0} % would \
         be alike): none is left out; use a rule or a meter, or more rows",
        found.auroc,
        100.0 * found.share.value
    )
}

impl Run<'_> {
    /// Leaves out bad anchors, or weighs them less, as the settings say. Before the first step, when all
    /// anchors are there.
    pub(super) async fn clean_anchors(&mut self) -> Result<()> {
        let choice = self.config.anchors.choice.clone();
        if choice == AnchorChoice::All || self.method().takes() != Takes::Anchors || self.cleaner.is_some() {
            return Ok(());
        }
        let all: Vec<usize> = (0..self.train.len()).collect();
        let (how, share, bad) = match choice {
            AnchorChoice::Meter(_) => {
                let anchors = self.train.iter().zip(&self.pools);
                let of: Vec<(&Example, &[Anchor])> =
                    anchors.map(|(e, pool)| (e, &pool.anchors[..])).collect();
                let scores = self.metered(&of).await?;
                let flat: Vec<f64> = scores.concat().iter().map(|s| f64::from(u8::from(*s > 0.5))).collect();
                (How::Meter, mean(&flat), scores)
            }
            _ => self.estimate(&all, choice == AnchorChoice::PuWeight).await?,
        };
        if how == How::Unknown {
            self.cleaner = Some(Cleaner { share, how });
            return Ok(());
        }
        self.judge_held_out(&how).await?;
        let examples = &self.train;
        let mut judged = Vec::new();
        for ((example, pool), scores) in examples.iter().zip(&mut self.pools).zip(bad) {
            let verdicts: Vec<(f64, f32)> = scores.into_iter().map(|score| how.verdict(score)).collect();
            let mut verdict = verdicts.iter();
            for (anchor, (bad, weight)) in pool.anchors.iter_mut().zip(verdicts.iter()) {
                anchor.weight = *weight;
                judged.push(Judged { example, anchor: anchor.clone(), bad: *bad, kept: *weight > 0.0 });
            }
            pool.anchors.retain(|_| verdict.next().is_none_or(|(_, weight)| *weight > 0.0));
            // What was left out is not sampled again.
            pool.rounds = RETRIES + 1;
        }
        // Before the observer hears of it: a run that it interrupts does not clean its anchors twice.
        self.cleaner = Some(Cleaner { share, how: how.clone() });
        judged.sort_by(|a, b| b.bad.total_cmp(&a.bad));
        let weighted = matches!(how, How::Weights { .. });
        let left_out = judged.iter().filter(|judged| !judged.kept).count();
        let done = match weighted {
            true => "each weighs as much as it is likely to be good".to_string(),
            false => format!("{left_out} of {} are left out", judged.len()),
        };
        let told = if how == How::Meter { "by the meter" } else { "by estimate" };
        self.observer.noted(&format!("{} of the anchors are bad {told}: {done}", percent(share)));
        let of = |kept: bool| judged.iter().filter(move |judged| judged.kept == kept).take(SHOWN);
        let shown = if weighted {
            judged.iter().take(SHOWN).collect()
        } else {
            of(false).chain(of(true)).collect::<Vec<_>>()
        };
        for judged in shown {
            if let Some(reader) = &self.reader {
                let text = reader.tokenizer.decode_answer(&judged.example.prompt_ids, &judged.anchor.ids)?;
                let what = if judged.kept {
                    format!("weight {:.2}", judged.anchor.weight)
                } else {
                    "left out".into()
                };
                self.observer.noted(&format!("  {what}: {}", excerpt(&text)));
            }
        }
        self.observer.cleaned(&Cleaned { share, anchors: judged })
    }

    /// Fits a head that tells the flagged answers of `examples` from good anchors, and the share of bad ones.
    /// Returns the scores of the anchors, too.
    async fn estimate(
        &mut self,
        examples: &[usize],
        weighted: bool,
    ) -> Result<(How, Estimate, Vec<Vec<f64>>)> {
        let (flagged, anchors) = self.states(examples).await?;
        let bad: Vec<&[f32]> = flagged.iter().map(Vec::as_slice).collect();
        let all: Vec<&[f32]> = anchors.iter().flatten().map(Vec::as_slice).collect();
        self.check_enough(bad.len(), all.len(), "anchors.choice")?;
        let found: Mixture = mixture::estimate(&bad, &all, self.config.train.seed);
        let odds = (found.share.value / (1.0 - found.share.value).max(1e-6)).max(1e-6).ln() as f32;
        // If none is left out, the threshold is infinite, which JSON cannot represent.
        let threshold = (found.threshold() as f32).min(f32::MAX);
        let head = found.head.clone();
        let how = if !found.tells() {
            self.observer.warned(&unclear(&found, "anchors", "flagged answers", &setting("anchors.choice")));
            How::Unknown
        } else if weighted {
            How::Weights { head, odds }
        } else {
            How::Head { head, threshold }
        };
        // The scores of the estimate itself: each by a head that has not seen the anchor. They are rounded as
        // the threshold is.
        let mut scores = found.scores.iter().map(|score| f64::from(*score as f32));
        let of_example = |states: &Vec<Vec<f32>>| scores.by_ref().take(states.len()).collect();
        Ok((how, found.share, anchors.iter().map(of_example).collect()))
    }

    /// Checks that there are enough answers to estimate a share from.
    pub(super) fn check_enough(&self, flagged: usize, anchors: usize, key: &str) -> Result<()> {
        if flagged.min(anchors) >= mixture::LEAST {
            return Ok(());
        }
        let expected = format!("{0} flagged answers and {0} anchors to estimate from", mixture::LEAST);
        let found = format!("{flagged} and {anchors}");
        let fix = format!("give more rows, or raise {}", setting("num_samples"));
        Err(Error::input(setting(key), expected, found, fix))
    }

    /// The mean hidden states of the examples' flagged answers, and of each one's anchors, under the anchors'
    /// reference.
    pub(super) async fn states(&mut self, examples: &[usize]) -> Result<(Vec<Vec<f32>>, Vec<Vec<Vec<f32>>>)> {
        let Some(capacity) = self.batches.scoring else { return Ok(Default::default()) };
        let (method, budget) = (self.method(), self.batches.score_budget);
        let Self { gpu, trainer, train, pools, observer, .. } = self;
        let groups: Vec<Group> = examples
            .iter()
            .map(|&i| Group {
                prompt: &train[i].prompt_ids,
                responses: loss_responses(method, &train[i], pools[i].ids()),
            })
            .collect();
        let (decoder, mut alive) = (&trainer.decoder, |_, _| observer.advance(0, 0));
        let pass = self.negative.pass(decoder);
        let states = mean_states_in(gpu, decoder, pass, &groups, (budget, capacity), &mut alive).await?;
        Ok(states.into_iter().filter_map(|mut states| Some((states.pop()?, states))).unzip())
    }

    /// The score of each answer to the examples' prompts, by the head or the meter of `how`; none if it is
    /// unknown. States are computed under the anchors' reference, in a workspace of the given capacity.
    pub(super) async fn scores_by(
        &self,
        how: &How,
        of: &[(&Example, &[Anchor])],
        capacity: Option<Capacity>,
    ) -> Result<Vec<Vec<f64>>> {
        let (head, capacity) = match (how, capacity) {
            (How::Meter, _) => return self.metered(of).await,
            (How::Head { head, .. } | How::Weights { head, .. }, Some(capacity)) => (head, capacity),
            (How::Unknown, _) | (_, None) => return Ok(vec![Vec::new(); of.len()]),
        };
        let groups: Vec<Group> = of
            .iter()
            .map(|(example, answers)| Group {
                prompt: &example.prompt_ids,
                responses: answers.iter().map(|answer| &answer.ids[..]).collect(),
            })
            .collect();
        let decoder = &self.trainer.decoder;
        let (pass, room) = (self.negative.pass(decoder), (self.batches.score_budget, capacity));
        let states = mean_states_in(self.gpu, decoder, pass, &groups, room, &mut |_, _| Ok(())).await?;
        Ok(states.iter().map(|states| states.iter().map(|state| head.score(state)).collect()).collect())
    }

    /// The meter's score of each answer.
    async fn metered(&self, of: &[(&Example, &[Anchor])]) -> Result<Vec<Vec<f64>>> {
        let reader = self.reader.as_ref().and_then(|reader| Some((reader, reader.meter.as_ref()?)));
        let Some((reader, meter)) = reader else {
            let fix = "set Reader::meter";
            return Err(Error::input(setting("anchors.choice"), "a meter", "none", fix));
        };
        let mut texts: Vec<(&Prompt, String)> = Vec::new();
        for &(example, anchors) in of {
            for anchor in anchors {
                let text = reader.tokenizer.decode_answer(&example.prompt_ids, &anchor.ids)?;
                texts.push((&example.prompt, text));
            }
        }
        let answers: Vec<(&Prompt, &str)> = texts.iter().map(|(prompt, text)| (*prompt, &text[..])).collect();
        let scores = meter.scores(self.gpu, &answers).await?;
        let mut rest = scores.into_iter();
        Ok(of.iter().map(|(_, anchors)| rest.by_ref().take(anchors.len()).collect()).collect())
    }

    /// Judges the anchors of held-out prompts, which the stop rule watches. A prompt keeps its best
    /// anchor, whatever it is.
    async fn judge_held_out(&mut self, how: &How) -> Result<()> {
        let watched = self.held_out.examples.iter().zip(&self.held_out.pools);
        let of: Vec<(&Example, &[Anchor])> = watched.map(|(e, pool)| (e, &pool.anchors[..])).collect();
        let scores = self.scores_by(how, &of, self.batches.held_out).await?;
        for (pool, scores) in self.held_out.pools.iter_mut().zip(scores) {
            let best = scores.iter().copied().fold(f64::INFINITY, f64::min);
            let mut scores = scores.into_iter();
            pool.anchors.retain(|_| scores.next().is_none_or(|s| s == best || how.verdict(s).1 > 0.5));
            pool.rounds = RETRIES + 1;
        }
        Ok(())
    }

    /// Applies the cleaner to anchors that were just sampled anew for `examples`. If all of a prompt's are
    /// bad, it has none.
    pub(super) async fn clean_renewed(&mut self, examples: &[usize]) -> Result<()> {
        let Some(Cleaner { how, .. }) = self.cleaner.clone() else { return Ok(()) };
        let of: Vec<(&Example, &[Anchor])> =
            examples.iter().map(|&i| (&self.train[i], &self.pools[i].anchors[..])).collect();
        let scores = self.scores_by(&how, &of, self.batches.scoring).await?;
        for (&i, scores) in examples.iter().zip(scores) {
            let pool = &mut self.pools[i];
            // Stored anchors have been judged before.
            let new = |(anchor, _): &(&mut Anchor, f64)| anchor.step == pool.step;
            for (anchor, score) in pool.anchors.iter_mut().zip(scores).filter(new) {
                anchor.weight = how.verdict(score).1;
            }
            pool.anchors.retain(|anchor| anchor.weight > 0.0);
        }
        Ok(())
    }
}
