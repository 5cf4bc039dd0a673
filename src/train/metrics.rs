//! What is logged, under TRL's names where they exist.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::step::GroupOutcome;
use crate::config::Method;

/// Named figures in a fixed order; a JSON object when serialised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub Vec<(String, f64)>);

impl Metrics {
    /// Adds a figure.
    pub fn push(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|&(_, v)| v)
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The mean, or 0 of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    sum / count.max(1) as f64
}

/// What the two sides of a pair are called.
pub(super) fn sides(method: Method) -> (&'static str, &'static str) {
    match method {
        Method::D2o => ("anchor", "negative"),
        Method::Dpo | Method::Sft => ("chosen", "rejected"),
    }
}

/// Estimate of KL(reference ‖ policy) in nats per token from tokens drawn from the reference: the mean of e^d − 1 − d with
/// d = log π − log r, which is never negative (Schulman, "Approximating KL Divergence").
pub(super) fn kl(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    mean(pairs.map(|(policy, reference)| {
        let d = f64::from(policy) - f64::from(reference);
        d.exp() - 1.0 - d
    }))
}

/// A group's outcome with its reference's log-probs: per response the sum, and the tokens'.
pub(super) struct Observed {
    pub outcome: GroupOutcome,
    pub reference: Vec<Vec<f32>>,
}

/// The figures of a set of groups: a step's, or with the prefix `eval_` a held-out set's.
pub(super) fn of_groups(prefix: &str, method: Method, groups: &[Observed]) -> Metrics {
    let mut metrics = Metrics::default();
    let mut push = |name: &str, value: f64| metrics.push(format!("{prefix}{name}"), value);
    let over = |f: &dyn Fn(&GroupOutcome) -> f64| mean(groups.iter().map(|g| f(&g.outcome)));
    push("loss", over(&|o| f64::from(o.loss)));
    let (positive, negative) = sides(method);
    let split = |o: &GroupOutcome| o.responses.len() - usize::from(method != Method::Sft);
    if method != Method::Sft {
        push(&format!("rewards/{positive}"), over(&|o| f64::from(o.anchor_reward)));
        push(&format!("rewards/{negative}"), over(&|o| f64::from(o.negative_reward)));
        push("rewards/margins", over(&|o| f64::from(o.z)));
        push("rewards/accuracies", over(&|o| f64::from(u8::from(o.z > 0.0))));
    }
    let anchors = || groups.iter().flat_map(|g| g.outcome.responses.iter().take(split(&g.outcome)));
    push(&format!("logps/{positive}"), mean(anchors().map(|r| f64::from(r.logp))));
    if method != Method::Sft {
        let last = groups.iter().filter_map(|g| g.outcome.responses.last());
        push(&format!("logps/{negative}"), mean(last.map(|r| f64::from(r.logp))));
    }
    // Only anchors are the reference's own samples, which the estimate needs.
    if method == Method::D2o {
        let tokens = groups.iter().flat_map(|g| {
            let pairs = g.outcome.responses.iter().zip(&g.reference).take(split(&g.outcome));
            pairs.flat_map(|(r, reference)| r.token_logps.iter().copied().zip(reference.iter().copied()))
        });
        push("kl/anchor", kl(tokens));
    }
    push("entropy", mean(groups.iter().flat_map(|g| &g.outcome.responses).map(|r| f64::from(r.entropy))));
    metrics
}
