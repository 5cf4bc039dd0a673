//! Warns when a run's training metrics show that the model is collapsing. These signs only warn; the stop
//! rule, which looks at held-out examples, ends a run.

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;

/// Consecutive steps that a sign must last: single steps are noisy.
const STEPS: usize = 5;
/// Warn when the entropy falls below this fraction of its starting value.
const ENTROPY: f64 = 0.25;

/// Consecutive steps of each sign so far. Each sign is reported once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Collapse {
    falling: usize,
    far: usize,
    /// The entropies of the first [`STEPS`] steps; their mean is the starting value.
    first: Vec<f64>,
    low: usize,
}

impl Collapse {
    /// Takes a step's metrics; returns a warning if a sign has lasted long enough. `max_kl` is the stop
    /// rule's limit, in nats per token.
    pub fn see(&mut self, metrics: &Metrics, max_kl: f64) -> Option<String> {
        let both = [["rewards/anchor", "rewards/negative"], ["rewards/chosen", "rewards/rejected"]];
        let below = |name: &str| metrics.get(name).is_some_and(|reward| reward < 0.0);
        let fall = both.into_iter().find(|names| names.iter().all(|name| below(name)));
        if lasts(&mut self.falling, fall.is_some()) {
            let [good, bad] = fall?;
            return Some(format!(
                "{good} and {bad} have both been below 0 for {STEPS} steps: good answers are becoming less \
                 likely along with the bad ones; lower learning_rate or raise beta"
            ));
        }
        if lasts(&mut self.far, metrics.get("kl/anchor").is_some_and(|kl| kl > max_kl)) {
            return Some(format!(
                "kl/anchor has been above {max_kl} for {STEPS} steps: the model is far from the reference"
            ));
        }
        let entropy = metrics.get("entropy")?;
        if self.first.len() < STEPS {
            self.first.push(entropy);
            return None;
        }
        let start = self.first.iter().sum::<f64>() / STEPS as f64;
        lasts(&mut self.low, entropy < ENTROPY * start).then(|| {
            format!(
                "entropy has been below a quarter of its starting value {start:.3} for {STEPS} steps: the \
                 model's answers may be becoming repetitive"
            )
        })
    }
}

/// Counts a sign's consecutive steps; true once, at the step that completes [`STEPS`] of them.
fn lasts(count: &mut usize, now: bool) -> bool {
    if *count >= STEPS {
        return false;
    }
    *count = if now { *count + 1 } else { 0 };
    *count == STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(pairs: &[(&str, f64)]) -> Metrics {
        Metrics(pairs.iter().map(|&(name, value)| (name.to_string(), value)).collect())
    }

    /// The warnings, each with the index of its step.
    fn said(steps: impl Iterator<Item = Metrics>) -> Vec<(usize, String)> {
        let mut collapse = Collapse::default();
        steps.enumerate().filter_map(|(i, metrics)| Some((i, collapse.see(&metrics, 0.2)?))).collect()
    }

    #[test]
    fn each_sign_is_told_once_and_only_when_it_lasts() {
        let rewards =
            |anchor: f64| step(&[("rewards/anchor", anchor), ("rewards/negative", -1.0), ("entropy", 2.0)]);
        // Four in a row are noise.
        let noise = [-1.0, -1.0, -1.0, -1.0, 1.0].into_iter().cycle().take(50);
        assert!(said(noise.map(rewards)).is_empty());
        let found = said((0..30).map(|i| rewards(if i < 10 { 0.1 } else { -0.1 })));
        assert_eq!(found.len(), 1);
        assert!(found[0].0 == 14 && found[0].1.contains("rewards/anchor and rewards/negative"), "{found:?}");
        let found = said((0..30).map(|i| step(&[("kl/anchor", 0.01 * f64::from(i))])));
        assert!(found.len() == 1 && found[0].0 == 25 && found[0].1.contains("kl/anchor"), "{found:?}");
        let found = said((0..30).map(|i| step(&[("entropy", if i < 20 { 2.0 } else { 0.4 })])));
        assert!(found.len() == 1 && found[0].0 == 24 && found[0].1.contains("entropy"), "{found:?}");
        let chosen = step(&[("rewards/chosen", -0.1), ("rewards/rejected", -0.2)]);
        assert!(said(std::iter::repeat_n(chosen, 9))[0].1.contains("rewards/chosen"));
    }
}
