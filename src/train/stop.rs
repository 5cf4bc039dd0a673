//! The stop rule. The loss can always be lowered by making negatives less likely, even after the behaviour is
//! corrected; from there on the model only gets worse. Held-out examples show when to stop.

use super::metrics::Metrics;
use crate::config::StopConfig;

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
    /// Held-out metrics, or the losses or gradients of several steps in a row, were NaN or infinite.
    Diverged,
    /// The held-out margin grew by `stop.margin` or more in `stop.patience` evaluations in a row.
    MarginWon,
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
            Self::Diverged => "losses, gradients or held-out metrics were NaN or infinite",
            Self::Requested => "finished early on request",
            Self::MarginWon => "the margin on held-out examples grew by stop.margin or more",
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
    seen: Seen,
}

/// The rule's state.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Seen {
    start: Option<Metrics>,
    /// The highest merit so far.
    best: Option<f64>,
    /// Consecutive evaluations in which the margin had grown by at least `stop.margin`.
    won: usize,
}

/// Names of the evaluation metrics that the rule reads.
pub(super) const ANCHOR_LOGP: &str = "eval_logps_per_token/anchor";
pub(super) const KL: &str = "eval_kl/anchor";
pub(super) const PERPLEXITY: &str = "eval_perplexity";
pub(super) const MARGIN: &str = "eval_rewards/margins";
pub(super) const LOSS: &str = "eval_loss";

impl StopRule {
    /// A rule that has not seen an evaluation yet.
    pub fn new(config: StopConfig) -> Self {
        Self { config, seen: Seen::default() }
    }

    /// Judges an evaluation. Later ones are compared with the first.
    pub fn judge(&mut self, now: &Metrics) -> Verdict {
        let Some(start) = &self.seen.start else {
            self.seen.start = Some(now.clone());
            self.seen.best = merit(now);
            return Verdict { best: true, stop: None };
        };
        if let Some(reason) = self.broken(start, now) {
            return Verdict { best: false, stop: self.config.enabled.then_some(reason) };
        }
        // Without a margin or a loss to compare, the latest state within the bounds is the best.
        let best = merit(now).zip(self.seen.best).is_none_or(|(now, best)| now > best);
        if best {
            self.seen.best = merit(now);
        }
        // Subtract the margin at the start: without a reference it is not 0.
        let gained = now.get(MARGIN).map(|margin| margin - start.get(MARGIN).unwrap_or(0.0));
        let won = gained.is_some_and(|gained| gained >= self.config.margin);
        self.seen.won = if won { self.seen.won + 1 } else { 0 };
        let stop = self.config.enabled && self.seen.won >= self.config.patience;
        Verdict { best, stop: stop.then_some(StopReason::MarginWon) }
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
        [
            (numbers, StopReason::Diverged),
            (within(anchors), StopReason::AnchorsFell),
            (within(kl), StopReason::KlLimit),
            (within(perplexity), StopReason::PerplexityRose),
        ]
        .into_iter()
        .find_map(|(ok, reason)| (!ok).then_some(reason))
    }
}

/// A state is better if this is higher: the margin, or −loss for methods without a margin (SFT).
fn merit(metrics: &Metrics) -> Option<f64> {
    metrics.get(MARGIN).or_else(|| metrics.get(LOSS).map(|loss| -loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(anchor: f64, kl: f64, perplexity: f64, margin: f64) -> Metrics {
        let pairs = [(ANCHOR_LOGP, anchor), (KL, kl), (PERPLEXITY, perplexity), (MARGIN, margin)];
        Metrics(pairs.iter().map(|&(n, v)| (n.to_string(), v)).collect())
    }

    fn rule() -> StopRule {
        let mut rule = StopRule::new(StopConfig {
            max_anchor_drop: 0.1,
            max_kl: 0.2,
            margin: 2.0,
            patience: 2,
            max_perplexity_rise: 0.05,
            ..StopConfig::default()
        });
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
    fn without_a_margin_the_loss_says_which_state_is_best() {
        let named = |name: &str, value| Metrics(vec![(name.to_string(), value)]);
        let mut rule = StopRule::new(StopConfig::default());
        let best: Vec<bool> = [2.0, 1.5, 1.6, 1.4].map(|loss| rule.judge(&named(LOSS, loss)).best).into();
        assert_eq!(best, [true, true, false, true]);
        // Only good answers are held out: there is neither a margin nor a loss.
        let mut rule = StopRule::new(StopConfig { max_perplexity_rise: 0.1, ..StopConfig::default() });
        let best: Vec<bool> = [9.0, 9.5, 12.0].map(|p| rule.judge(&named(PERPLEXITY, p)).best).into();
        assert_eq!(best, [true, true, false]);
    }
}
