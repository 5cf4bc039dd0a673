//! Logged metrics, with TRL's names where it has them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::trainer::GroupOutcome;
use crate::loss::Loss;
use crate::loss::formula::{log_odds, softplus};
use crate::loss::{Method, Retain, Takes};
use crate::score::Scored;

/// Named values in a fixed order; serialised as a JSON object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub Vec<(String, f64)>);

impl Metrics {
    /// Appends a value.
    pub fn push(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// The value called `name`.
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

/// Keeps the order of the file. null, which serde_json writes for NaN and infinity, becomes NaN.
impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Metrics;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
                let mut metrics = Metrics::default();
                while let Some((name, value)) = map.next_entry::<String, Option<f64>>()? {
                    metrics.push(name, value.unwrap_or(f64::NAN));
                }
                Ok(metrics)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The mean; 0 if there are no values.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    sum / count.max(1) as f64
}

/// Metric names of the two sides of a group, as in [`Observed::side`]; `None` if the method has no such side.
fn sides(method: Method) -> [Option<&'static str>; 2] {
    match method.takes() {
        Takes::Anchors => [Some("anchor"), Some("negative")],
        Takes::Negative => [None, Some("negative")],
        Takes::Pair | Takes::Either => [Some("chosen"), Some("rejected")],
        Takes::Chosen => [Some("chosen"), None],
    }
}

/// Estimate of KL(reference ‖ policy) in nats per token from tokens sampled from the reference; see
/// [`Retain::loss`].
pub(super) fn kl(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    mean(pairs.map(|(policy, reference)| Retain::Kl.loss(f64::from(policy), f64::from(reference))))
}

/// The mean loss of retained answers, from their log-probs now and before training.
pub(super) fn retain_loss(form: Retain, answers: &[(&Scored, &Scored)]) -> f64 {
    let of_answer = |(now, start): &(&Scored, &Scored)| {
        let pairs = now.token_logps.iter().zip(&start.token_logps);
        mean(pairs.map(|(now, start)| form.loss(f64::from(*now), f64::from(*start))))
    };
    mean(answers.iter().map(of_answer))
}

/// A group's outcome, and the reference's token log-probs of each response.
pub(super) struct Observed {
    pub outcome: GroupOutcome,
    pub reference: Vec<Vec<f32>>,
}

impl Observed {
    /// The non-empty responses of a side. Side 0: all responses but the last, or all if the method takes only
    /// chosen answers. Side 1: the rest.
    fn side(&self, method: Method, side: usize) -> impl Iterator<Item = &Scored> {
        let all = &self.outcome.responses;
        let last = all.len() - usize::from(method.takes() != Takes::Chosen);
        let part = if side == 0 { &all[..last] } else { &all[last..] };
        part.iter().filter(|response| !response.token_logps.is_empty())
    }
}

/// The metrics of a set of groups: of a step, or with the prefix `eval_` of the held-out set. Losses and
/// rewards are means over groups, `logps` and `entropy` over responses, `kl/anchor` over tokens.
pub(super) fn of_groups(prefix: &str, (method, loss): (Method, Loss), groups: &[Observed]) -> Metrics {
    let mut metrics = Metrics::default();
    let mut push = |name: &str, value: f64| metrics.push(format!("{prefix}{name}"), value);
    let over = |f: &dyn Fn(&GroupOutcome) -> f64| mean(groups.iter().map(|g| f(&g.outcome)));
    push("loss", over(&|o| f64::from(o.loss)));
    let takes = method.takes();
    // A KTO group has one side only, and all groups of a step may have the same side.
    let reward = |side: usize| {
        let with: Vec<&Observed> = groups.iter().filter(|g| g.side(method, side).next().is_some()).collect();
        (!with.is_empty()).then(|| mean(with.iter().map(|g| f64::from(g.outcome.rewards[side]))))
    };
    if !matches!(method, Method::Sft | Method::Ga | Method::Ul) {
        let rewards = [reward(0), reward(1)];
        for (name, value) in sides(method).into_iter().zip(rewards) {
            if let (Some(name), Some(value)) = (name, value) {
                push(&format!("rewards/{name}"), value);
            }
        }
        match (takes, rewards) {
            (Takes::Negative, [_, Some(negative)]) => push("rewards/margins", -negative),
            (_, [Some(chosen), Some(rejected)]) => push("rewards/margins", chosen - rejected),
            _ => {}
        }
        if matches!(takes, Takes::Anchors | Takes::Pair) {
            push("rewards/accuracies", over(&|o| f64::from(u8::from(o.is_won(loss)))));
        }
    }
    for (side, name) in sides(method).into_iter().enumerate() {
        let responses: Vec<&Scored> = groups.iter().flat_map(|g| g.side(method, side)).collect();
        if let Some(name) = name.filter(|_| !responses.is_empty()) {
            push(&format!("logps/{name}"), mean(responses.iter().map(|r| f64::from(r.logp))));
        }
    }
    if matches!(method, Method::Slic | Method::Orpo) {
        let per_token = |r: &Scored| f64::from(r.logp) / r.token_logps.len() as f64;
        push("nll_loss", -mean(groups.iter().flat_map(|g| g.side(method, 0)).map(per_token)));
        if method == Method::Orpo {
            let odds = |o: &GroupOutcome| {
                let [chosen, rejected] = [0, 1].map(|i| log_odds(per_token(&o.responses[i])));
                chosen - rejected
            };
            push("log_odds_chosen", over(&odds));
            push("log_odds_ratio", over(&|o| -softplus(-odds(o))));
        }
    }
    // The estimate needs samples from the reference: only anchors are.
    if takes == Takes::Anchors {
        let tokens = groups.iter().flat_map(|g| {
            let anchors = g.outcome.responses.len() - 1;
            let pairs = g.outcome.responses[..anchors].iter().zip(&g.reference);
            pairs.flat_map(|(r, reference)| r.token_logps.iter().copied().zip(reference.iter().copied()))
        });
        push("kl/anchor", kl(tokens));
    }
    let present = groups.iter().flat_map(|g| &g.outcome.responses).filter(|r| !r.token_logps.is_empty());
    push("entropy", mean(present.map(|r| f64::from(r.entropy))));
    metrics
}
