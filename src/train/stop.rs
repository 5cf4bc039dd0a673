//! The stop rule. The loss can always be lowered by making negatives less likely, even after the behaviour is
//! corrected; from there on the model only gets worse. Held-out examples and ordinary prompts show when to
//! stop.

use super::metrics::Metrics;
use super::reader::{ORDINARY_DISTINCT, ORDINARY_LENGTH, ORDINARY_REFUSAL, UNWANTED};
use crate::config::{RunConfig, StopConfig};

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// All steps were taken.
    Finished,
    /// The held-out anchors' log-prob per token fell by more than `stop.max_anchor_drop`.
    AnchorsFell,
    /// The KL divergence from the starting model, on held-out anchors, exceeded `stop.max_kl`.
    KlLimit,
    /// The perplexity of held-out good answers rose by more than `stop.max_perplexity_rise`.
    PerplexityRose,
    /// The share of ordinary prompts that the model refuses rose by more than `stop.max_refusal_rise`.
    RefusalsRose,
    /// Distinct-2 of the answers to ordinary prompts fell by more than `stop.max_distinct_drop`.
    DistinctFell,
    /// The mean length of the answers to ordinary prompts changed by more than `stop.max_length_change`.
    LengthChanged,
    /// Held-out metrics, or the losses or gradients of several steps in a row, were NaN or infinite.
    Diverged,
    /// The held-out margin grew by `stop.margin` or more in `stop.patience` evaluations in a row.
    MarginWon,
    /// The share of unwanted answers to held-out prompts was at most `stop.target_unwanted` in
    /// `stop.patience` evaluations in a row.
    UnwantedGone,
    /// The observer asked to finish.
    Requested,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Finished => "all steps taken",
            Self::AnchorsFell => {
                "the held-out anchors' log-prob per token fell by more than stop.max_anchor_drop"
            }
            Self::KlLimit => "the KL divergence on held-out anchors exceeded stop.max_kl",
            Self::PerplexityRose => {
                "the perplexity of held-out good answers rose by more than stop.max_perplexity_rise"
            }
            Self::RefusalsRose => {
                "the share of ordinary prompts that are refused rose by more than stop.max_refusal_rise"
            }
            Self::DistinctFell => {
                "distinct-2 of the answers to ordinary prompts fell by more than stop.max_distinct_drop"
            }
            Self::LengthChanged => {
                "the length of the answers to ordinary prompts changed by more than stop.max_length_change"
            }
            Self::Diverged => "losses, gradients or held-out metrics were NaN or infinite",
            Self::Requested => "finished early on request",
            Self::MarginWon => "the margin on held-out examples grew by stop.margin or more",
            Self::UnwantedGone => {
                "at most stop.target_unwanted of the answers to held-out prompts are unwanted"
            }
        })
    }
}

/// The stop rule's decision after an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the state is the best so far and is to be kept.
    pub best: bool,
    /// The reason to stop, if the run is to stop.
    pub stop: Option<StopReason>,
}

/// Decides from a run's evaluations whether to stop.
#[derive(Debug)]
pub struct StopRule {
    config: StopConfig,
    /// How many answers to held-out prompts are read.
    answers: usize,
    seen: Seen,
}

/// The rule's state.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Seen {
    start: Option<Metrics>,
    /// The merit of the best state so far.
    best: Option<Merit>,
    /// The lowest share of unwanted answers so far.
    #[serde(default)]
    lowest: Option<f64>,
    /// Consecutive evaluations in which the target was reached.
    won: usize,
}

/// Names of the evaluation metrics that the rule reads.
pub(super) const ANCHOR_LOGP: &str = "eval_logps_per_token/anchor";
pub(super) const KL: &str = "eval_kl/anchor";
pub(super) const PERPLEXITY: &str = "eval_perplexity";
pub(super) const MARGIN: &str = "eval_rewards/margins";
pub(super) const LOSS: &str = "eval_loss";

impl StopRule {
    /// A rule that has not seen an evaluation yet. `answers` is how many answers to held-out prompts an
    /// evaluation reads.
    pub fn new(config: StopConfig, answers: usize) -> Self {
        Self { config, answers, seen: Seen::default() }
    }

    /// The rule for a run with `config`. Methods that learn from good answers may make answers shorter,
    /// longer or more alike: that is what they are asked for.
    pub(super) fn of(config: &RunConfig, answers: usize) -> Self {
        let mut stop = StopConfig { max_kl: config.max_kl(), ..config.stop.clone() };
        if !config.method.method.is_of_negatives() {
            (stop.max_distinct_drop, stop.max_length_change) = (f64::MAX, f64::MAX);
        }
        Self::new(stop, answers)
    }

    /// Judges an evaluation. Later ones are compared with the first.
    pub fn judge(&mut self, now: &Metrics) -> Verdict {
        let Some(start) = self.seen.start.clone() else {
            self.seen.start = Some(now.clone());
            self.seen.best = Merit::of(now);
            self.seen.lowest = now.get(UNWANTED);
            return Verdict { best: true, stop: None };
        };
        if let Some(reason) = self.broken(&start, now) {
            return Verdict { best: false, stop: self.config.enabled.then_some(reason) };
        }
        let best = self.is_best(now);
        if best {
            self.seen.best = Merit::of(now);
        }
        // Answers say more than margins, unless there was nothing to win.
        let was_unwanted = start.get(UNWANTED).is_some_and(|share| share > self.config.target_unwanted);
        let (won, reason) = match now.get(UNWANTED).filter(|_| was_unwanted) {
            Some(share) => (share <= self.config.target_unwanted, StopReason::UnwantedGone),
            None => {
                // Subtract the margin at the start: without a reference it is not 0.
                let gained = now.get(MARGIN).map(|margin| margin - start.get(MARGIN).unwrap_or(0.0));
                (gained.is_some_and(|gained| gained >= self.config.margin), StopReason::MarginWon)
            }
        };
        self.seen.won = if won { self.seen.won + 1 } else { 0 };
        let stop = self.config.enabled && self.seen.won >= self.config.patience;
        Verdict { best, stop: stop.then_some(reason) }
    }

    /// Whether a state within the bounds is the best so far: the one with the largest margin among those
    /// with at most one unwanted answer more than the state with the fewest. A difference of one answer is
    /// noise, and the margin is not. Breiman and others' rule of one standard error (Classification and
    /// Regression Trees, 1984) is the same thought.
    fn is_best(&mut self, now: &Metrics) -> bool {
        if let Some(share) = now.get(UNWANTED) {
            self.seen.lowest = Some(self.seen.lowest.map_or(share, |lowest| lowest.min(share)));
        }
        // Without anything to compare, the latest state is the best.
        let Some((now, best)) = Merit::of(now).zip(self.seen.best) else { return true };
        // Between one answer and two.
        let one = 1.5 / self.answers.max(1) as f64;
        let few = |merit: Merit| merit.unwanted <= self.seen.lowest.unwrap_or(0.0) + one;
        match (few(now), few(best)) {
            (true, true) => now.second > best.second,
            (now_has_few, _) => now_has_few,
        }
    }

    /// The rule's state, for a checkpoint.
    pub(super) fn seen(&self) -> Seen {
        self.seen.clone()
    }

    /// Resumes from a state of [`StopRule::seen`].
    pub(super) fn restore(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// The violated bound, if there is one. NaN or infinity in a metric that the rule reads is
    /// [`StopReason::Diverged`].
    fn broken(&self, start: &Metrics, now: &Metrics) -> Option<StopReason> {
        let pair = |name| Some((start.get(name)?, now.get(name)?));
        let within = |ok: Option<bool>| ok.unwrap_or(true);
        let read = [ANCHOR_LOGP, KL, PERPLEXITY, MARGIN, LOSS];
        let numbers = read.iter().all(|name| now.get(name).is_none_or(f64::is_finite));
        let c = &self.config;
        let anchors = pair(ANCHOR_LOGP).map(|(then, now)| then - now <= c.max_anchor_drop);
        let kl = now.get(KL).map(|kl| kl <= c.max_kl);
        let perplexity = pair(PERPLEXITY).map(|(then, now)| now <= then * (1.0 + c.max_perplexity_rise));
        let refusals = pair(ORDINARY_REFUSAL).map(|(then, now)| now - then <= c.max_refusal_rise);
        let distinct = pair(ORDINARY_DISTINCT).map(|(then, now)| now >= then * (1.0 - c.max_distinct_drop));
        let length =
            pair(ORDINARY_LENGTH).map(|(then, now)| (now - then).abs() <= then * c.max_length_change);
        [
            (numbers, StopReason::Diverged),
            (within(anchors), StopReason::AnchorsFell),
            (within(kl), StopReason::KlLimit),
            (within(perplexity), StopReason::PerplexityRose),
            (within(refusals), StopReason::RefusalsRose),
            (within(distinct), StopReason::DistinctFell),
            (within(length), StopReason::LengthChanged),
        ]
        .into_iter()
        .find_map(|(ok, reason)| (!ok).then_some(reason))
    }
}

/// How good a state is.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Merit {
    /// The share of unwanted answers, or 0 if no rule tells them.
    unwanted: f64,
    /// The margin, or minus the loss for methods without a margin (SFT).
    second: Option<f64>,
}

impl Merit {
    fn of(metrics: &Metrics) -> Option<Self> {
        let (unwanted, margin, loss) = (metrics.get(UNWANTED), metrics.get(MARGIN), metrics.get(LOSS));
        let second = margin.or(loss.map(|loss| -loss));
        (unwanted.is_some() || second.is_some()).then(|| Self { unwanted: unwanted.unwrap_or(0.0), second })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(anchor: f64, kl: f64, perplexity: f64, margin: f64) -> Metrics {
        let pairs = [(ANCHOR_LOGP, anchor), (KL, kl), (PERPLEXITY, perplexity), (MARGIN, margin)];
        Metrics(pairs.iter().map(|&(n, v)| (n.to_string(), v)).collect())
    }

    fn rule() -> StopRule {
        let mut rule = StopRule::new(
            StopConfig {
                max_anchor_drop: 0.1,
                max_kl: 0.2,
                margin: 2.0,
                patience: 2,
                max_perplexity_rise: 0.05,
                ..StopConfig::default()
            },
            24,
        );
        assert_eq!(rule.judge(&eval(-1.0, 0.0, 10.0, 0.0)), Verdict { best: true, stop: None });
        rule
    }

    #[test]
    fn each_bound_stops() {
        let stops = [
            (eval(-1.2, 0.0, 10.0, 1.0), StopReason::AnchorsFell),
            (eval(-1.0, 0.3, 10.0, 1.0), StopReason::KlLimit),
            (eval(-1.0, 0.0, 10.6, 1.0), StopReason::PerplexityRose),
            (eval(f64::NAN, 0.0, 10.0, 1.0), StopReason::Diverged),
            (eval(-1.0, 0.0, f64::INFINITY, 1.0), StopReason::Diverged),
        ];
        for (now, reason) in stops {
            assert_eq!(rule().judge(&now), Verdict { best: false, stop: Some(reason) });
        }
    }

    #[test]
    fn a_margin_must_be_won_twice_in_a_row() {
        let mut rule = rule();
        assert_eq!(rule.judge(&eval(-0.9, 0.1, 9.0, 2.5)), Verdict { best: true, stop: None });
        assert_eq!(rule.judge(&eval(-0.9, 0.1, 9.0, 1.5)), Verdict { best: false, stop: None });
        assert_eq!(rule.judge(&eval(-0.9, 0.1, 9.0, 2.1)), Verdict { best: false, stop: None });
        let verdict = rule.judge(&eval(-0.9, 0.1, 9.0, 2.2));
        assert_eq!(verdict, Verdict { best: false, stop: Some(StopReason::MarginWon) });
    }

    #[test]
    fn answers_say_which_state_is_best_and_when_to_stop() {
        let answers = |unwanted: f64, refusal: f64, distinct: f64, length: f64, margin: f64| {
            let names = [UNWANTED, ORDINARY_REFUSAL, ORDINARY_DISTINCT, ORDINARY_LENGTH, MARGIN];
            let values = [unwanted, refusal, distinct, length, margin];
            Metrics(names.into_iter().map(String::from).zip(values).collect())
        };
        let start = || {
            let mut rule = StopRule::new(StopConfig::default(), 24);
            rule.judge(&answers(0.5, 0.1, 0.9, 30.0, 0.0));
            rule
        };
        let mut rule = start();
        // A margin that was won does not stop while unwanted answers are left.
        let seen = [(0.25, 9.0), (0.25, 8.0), (0.25, 9.5), (0.0, 1.0), (0.04, 1.0), (0.0, 1.0), (0.0, 1.0)];
        let found = seen.map(|(unwanted, margin)| rule.judge(&answers(unwanted, 0.2, 0.8, 25.0, margin)));
        assert_eq!(found.map(|verdict| verdict.best), [true, false, true, true, false, false, false]);
        let stops = found.map(|verdict| verdict.stop);
        assert_eq!((&stops[..6], stops[6]), (&[None; 6][..], Some(StopReason::UnwantedGone)));
        for (now, reason) in [
            (answers(0.0, 0.21, 0.9, 30.0, 1.0), StopReason::RefusalsRose),
            (answers(0.0, 0.1, 0.7, 30.0, 1.0), StopReason::DistinctFell),
            (answers(0.0, 0.1, 0.9, 20.0, 1.0), StopReason::LengthChanged),
        ] {
            assert_eq!(start().judge(&now), Verdict { best: false, stop: Some(reason) });
        }
    }

    #[test]
    fn one_unwanted_answer_more_is_noise() {
        let at =
            |of_24: f64, margin: f64| Metrics(vec![(UNWANTED.into(), of_24 / 24.0), (MARGIN.into(), margin)]);
        let mut rule = StopRule::new(StopConfig::default(), 24);
        rule.judge(&at(6.0, 0.0));
        // Fewer by more than one; one more than the fewest, at a larger margin, and at a smaller one; two
        // more; as many as the fewest again, at a smaller margin.
        let seen = [(4.0, -0.2), (0.0, 1.1), (1.0, 2.2), (1.0, 1.5), (2.0, 3.4), (0.0, 2.0)];
        let best = seen.map(|(unwanted, margin)| rule.judge(&at(unwanted, margin)).best);
        assert_eq!(best, [true, true, true, false, false, false]);
    }

    #[test]
    fn a_checkpoint_keeps_what_was_best() {
        let mut rule = StopRule::new(StopConfig::default(), 24);
        rule.judge(&Metrics(vec![(UNWANTED.into(), 0.5)]));
        let kept = serde_json::to_string(&rule.seen()).unwrap();
        rule.restore(serde_json::from_str(&kept).unwrap());
        assert!(!rule.judge(&Metrics(vec![(UNWANTED.into(), 0.6)])).best);
        assert!(rule.judge(&Metrics(vec![(UNWANTED.into(), 0.4)])).best);
    }

    #[test]
    fn a_habit_that_is_not_seen_at_the_start_is_not_won_against() {
        let at =
            |unwanted: f64, margin: f64| Metrics(vec![(UNWANTED.into(), unwanted), (MARGIN.into(), margin)]);
        let mut rule = StopRule::new(StopConfig::default(), 24);
        let stops = [(0.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 3.0)];
        let stops = stops.map(|(unwanted, margin)| rule.judge(&at(unwanted, margin)).stop);
        assert_eq!(stops, [None, None, None, None, Some(StopReason::MarginWon)]);
    }

    #[test]
    fn without_a_margin_the_loss_says_which_state_is_best() {
        let named = |name: &str, value| Metrics(vec![(name.to_string(), value)]);
        let mut rule = StopRule::new(StopConfig::default(), 24);
        let best: Vec<bool> = [2.0, 1.5, 1.6, 1.4].map(|loss| rule.judge(&named(LOSS, loss)).best).into();
        assert_eq!(best, [true, true, false, true]);
        // Only good answers are held out: there is neither a margin nor a loss.
        let mut rule = StopRule::new(StopConfig { max_perplexity_rise: 0.1, ..StopConfig::default() }, 24);
        let best: Vec<bool> = [9.0, 9.5, 12.0].map(|p| rule.judge(&named(PERPLEXITY, p)).best).into();
        assert_eq!(best, [true, true, false]);
    }
}
