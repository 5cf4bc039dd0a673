//! Signs in a run's own figures that the model is breaking. They warn; what ends a run is the stop rule, on
//! held-out examples.

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;

/// Steps in a row that a sign must last: single steps are noisy.
const STEPS: usize = 5;
/// The share of its entropy at the start below which a model has little left to say.
const ENTROPY: f64 = 0.25;

/// What has been seen of each sign; each is told once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Collapse {
    falling: usize,
    far: usize,
    /// The first entropies, as many as count.
    first: Vec<f64>,
    low: usize,
}

impl Collapse {
    /// Looks at a step's figures; what the user should know. `max_kl` is the stop rule's limit, in nats per
    /// token.
    pub fn see(&mut self, metrics: &Metrics, max_kl: f64) -> Option<String> {
        let both = [["rewards/anchor", "rewards/negative"], ["rewards/chosen", "rewards/rejected"]];
        let below = |name: &str| metrics.get(name).is_some_and(|reward| reward < 0.0);
        let fall = both.into_iter().find(|names| names.iter().all(|name| below(name)));
        if lasts(&mut self.falling, fall.is_some()) {
            let [good, bad] = fall?;
            return Some(format!(
                "{good} and {bad} have both been below 0 for {STEPS} steps: the model is losing its good \
                 answers with the bad; a lower learning_rate or a higher beta holds it"
            ));
        }
        if lasts(&mut self.far, metrics.get("kl/anchor").is_some_and(|kl| kl > max_kl)) {
            return Some(format!(
                "kl/anchor has been over {max_kl} for {STEPS} steps: the model is far from where it started"
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
                "entropy has been under a quarter of the start's {start:.3} for {STEPS} steps: the model \
                 repeats itself"
            )
        })
    }
}

/// Counts a sign's steps in a row; true at the one that makes it last, and never again after that.
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

    /// What is said, by the number of the step.
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
