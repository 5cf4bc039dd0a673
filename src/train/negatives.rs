//! The choice among flagged answers: what a run remembers for it, and the rules.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::anchors::Pool;
use crate::config::NegativeChoice;

/// The flagged answer that an example is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Use {
    /// Its row's.
    Own,
    /// That of another training example.
    Of(usize),
    /// An answer that the model gave itself.
    Sampled(Vec<u32>),
}

/// A row's flagged answer with its marks.
pub(super) type Flagged = (Option<Vec<u32>>, Option<Vec<f32>>);

/// What a run remembers for the choice among its flagged answers. Lists are by training example; those that
/// the settings do not need are empty.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Negatives {
    /// The cluster of the prompt.
    pub clusters: Vec<usize>,
    /// The examples with the nearest prompts, itself first.
    pub near: Vec<Vec<usize>>,
    /// The last log-probs per token of the flagged answer, as the policy changed.
    pub history: Vec<Vec<f32>>,
    /// What the example is trained on now.
    pub used: Vec<Use>,
    /// Bad answers that the model gave under the harmful instruction.
    pub pools: Vec<Pool>,
    /// Answers sampled under the harmful instruction, and those of them that were bad.
    pub sampled: (usize, usize),
    /// The rows' own flagged answers, once another one may be used.
    #[serde(skip)]
    pub own: Vec<Flagged>,
    /// Factors of the flagged answers' weights in the step that is being made.
    #[serde(skip)]
    pub factors: Vec<f32>,
}

/// How many times as many rows as a step takes are looked at, if it takes some of them.
const CANDIDATES: usize = 4;

/// How many times as many rows as a step trains on are looked at for it.
pub(super) fn candidates(choice: NegativeChoice) -> usize {
    if matches!(choice, NegativeChoice::Hard | NegativeChoice::Variance) { CANDIDATES } else { 1 }
}

/// Random numbers for one example in one step.
pub(super) fn dice(seed: u32, step: usize, example: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64((u64::from(seed) << 32) ^ step as u64);
    rng.set_stream(1 + example as u64);
    rng
}

/// The `keep` items with the highest scores, in their order. Scores that are NaN are the lowest.
pub(super) fn highest(items: &[usize], scores: &[f64], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    let score = |i: usize| if scores[i].is_nan() { f64::NEG_INFINITY } else { scores[i] };
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order.truncate(keep);
    order.sort_unstable();
    order.into_iter().map(|i| items[i]).collect()
}

/// Log-probs of which the variance is taken: SRNS takes those of the last five epochs.
const REMEMBERED: usize = 5;

/// Adds a log-prob to a history, which keeps the last [`REMEMBERED`]. NaN and infinity are not remembered.
pub(super) fn remember(history: &mut Vec<f32>, logp: f64) {
    if !logp.is_finite() {
        return;
    }
    history.push(logp as f32);
    if history.len() > REMEMBERED {
        history.remove(0);
    }
}

/// SRNS' score of a flagged answer: how likely it is now, plus the standard deviation of its remembered
/// log-probs, whose weight rises from 0 to 1 over the first half of the run, as histories become known
/// (Ding et al., arXiv 2009.03376, equation 4, with their warm start of the weight).
pub(super) fn likely_and_varied(history: &[f32], step: usize, total: usize) -> f64 {
    let n = history.len().max(1) as f64;
    let mean = history.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = history.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let weight = (2.0 * step as f64 / total.max(1) as f64).min(1.0);
    f64::from(history.last().copied().unwrap_or(f32::NEG_INFINITY)) + weight * variance.sqrt()
}

/// Near prompts of a chain, itself included.
pub(super) const NEAR: usize = 16;
/// Proposals of a chain in one step.
pub(super) const PROPOSALS: usize = 4;
/// MCNS' exponent: negatives are drawn in proportion to this power of their probability, which falls more
/// slowly than the probability itself (Yang et al., arXiv 2005.09863).
const POWER: f64 = 0.75;

/// Proposals for a chain among `count` examples: half of them from `near`, half from all.
pub(super) fn proposals(rng: &mut ChaCha8Rng, near: &[usize], count: usize) -> Vec<usize> {
    let one = |rng: &mut ChaCha8Rng| match rng.random_bool(0.5) {
        true => near[rng.random_range(0..near.len())],
        false => rng.random_range(0..count),
    };
    (0..PROPOSALS).map(|_| one(rng)).collect()
}

/// Walks a Metropolis-Hastings chain from `at` through `proposed`, and returns where it ends. Its target is
/// the probability of the example's flagged answer as an answer to the chain's prompt, per token (the
/// geometric mean) and to the power of [`POWER`]; `logp` is its logarithm before the power.
pub(super) fn walk(
    rng: &mut ChaCha8Rng,
    mut at: usize,
    proposed: &[usize],
    (near, count): (&[usize], usize),
    logp: &dyn Fn(usize) -> f64,
) -> usize {
    let chance = |i: usize| {
        let of_near = if near.contains(&i) { 0.5 / near.len() as f64 } else { 0.0 };
        of_near + 0.5 / count as f64
    };
    for &next in proposed {
        let ratio = POWER * (logp(next) - logp(at)) + chance(at).ln() - chance(next).ln();
        if rng.random::<f64>().ln() < ratio {
            at = next;
        }
    }
    at
}

/// The most that `paired` adds to the weight of a flagged answer.
const PAIRED: f64 = 1.0;

/// The factors of the flagged answers' weights from the policy's log-probs per token of anchors and flagged
/// answers. A flagged answer is hard if it is likelier than the step's lower median; its weight then grows
/// with how unlikely its anchors are (after Zeng et al., "NPCFace", arXiv 2007.10172, whose weight of a
/// hard negative grows with the difficulty of its positive).
pub(super) fn paired(logps: &[(f64, f64)]) -> Vec<f32> {
    let mut sorted: Vec<f64> = logps.iter().map(|(_, flagged)| *flagged).collect();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
    let factor = |&(anchors, flagged): &(f64, f64)| match flagged > median {
        true => (1.0 + PAIRED * (1.0 - anchors.exp())) as f32,
        false => 1.0,
    };
    logps.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_keep_their_order() {
        assert_eq!(highest(&[7, 8, 9, 10], &[1.0, 3.0, 2.0, 3.0], 3), [8, 9, 10]);
        assert_eq!(highest(&[7, 8, 9, 10], &[3.0, 1.0, 3.0, 3.0], 2), [7, 9]);
        assert_eq!(highest(&[7], &[1.0], 3), [7]);
        assert_eq!(highest(&[7, 8, 9], &[f64::NAN, 1.0, -2.0], 2), [8, 9]);
    }

    #[test]
    fn variance_counts_more_as_the_run_goes_on() {
        let (calm, varied) = ([-1.0; 5], [-3.0, -1.0, -3.0, -1.0, -1.5]);
        let score = |history: &[f32], step| likely_and_varied(history, step, 20);
        assert!(score(&calm, 0) > score(&varied, 0) && score(&calm, 10) < score(&varied, 10));
        assert_eq!(score(&varied, 10), score(&varied, 19));
        let deviation = 0.84f64.sqrt();
        assert!((score(&varied, 10) - (-1.5 + deviation)).abs() < 1e-6);
        let mut history = Vec::new();
        (0..7).for_each(|i| remember(&mut history, f64::from(i)));
        remember(&mut history, f64::NAN);
        assert_eq!(history, [2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    /// The chain visits each state as often as its target says, whatever is near.
    #[test]
    fn chains_follow_their_target() {
        let logps = [-1.0, -2.0, -3.0, -2.5, -1.5, -6.0];
        let near = [2, 3];
        let (mut rng, mut at) = (dice(1, 2, 3), 5);
        let mut visits = [0.0f64; 6];
        let rounds = 60_000;
        for _ in 0..rounds {
            let proposed = proposals(&mut rng, &near, 6);
            at = walk(&mut rng, at, &proposed, (&near, 6), &|i| logps[i]);
            visits[at] += 1.0 / f64::from(rounds);
        }
        let target = logps.map(|logp: f64| (0.75 * logp).exp());
        let sum: f64 = target.iter().sum();
        for (visits, target) in visits.iter().zip(target) {
            assert!((visits - target / sum).abs() < 0.01, "{visits} {}", target / sum);
        }
    }

    #[test]
    fn hard_flagged_answers_with_unlikely_anchors_weigh_more() {
        let factors = paired(&[(-3.0, -1.0), (-0.1, -1.0), (-3.0, -2.0), (-0.1, -2.0)]);
        assert!(factors[0] > 1.9 && factors[1] < 1.1 && factors[1] > 1.0, "{factors:?}");
        assert_eq!(factors[2..], [1.0, 1.0]);
    }

    #[test]
    fn dice_depend_on_everything() {
        let roll = |seed, step, example| dice(seed, step, example).random::<u64>();
        let rolls = [roll(1, 2, 3), roll(2, 2, 3), roll(1, 3, 3), roll(1, 2, 4)];
        assert!((0..4).all(|i| (0..i).all(|j| rolls[i] != rolls[j])));
        assert_eq!(roll(1, 2, 3), rolls[0]);
    }
}
