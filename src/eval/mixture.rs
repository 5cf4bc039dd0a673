//! How many of the unlabelled answers are bad, estimated from bad ones alone: mixture proportion estimation
//! and learning from positive and unlabelled examples (Garg et al., arXiv 2111.00980, "Mixture Proportion
//! Estimation and PU Learning: A Modern Approach"). The "positives" there are the bad answers here.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::head::Head;
use super::stats::{Estimate, auroc};

/// The estimate for a list of unlabelled answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// The share of bad answers, with a 95% interval: the bootstrap over both lists, given the heads.
    pub share: Estimate,
    /// The AUROC with which the scores tell the bad answers from all unlabelled ones.
    pub auroc: f64,
    /// The score of each unlabelled answer, by a head that was not fitted to it. Higher is worse.
    pub scores: Vec<f64>,
    /// A head for further answers.
    pub head: Head,
}

/// The largest share that is believed, and by how much the AUROC may miss what the share implies.
const MOST: f64 = 0.5;
const TOLERANCE: f64 = 0.05;

impl Mixture {
    /// Whether the scores can tell bad answers. If they can, only the bad ones among the unlabelled score as
    /// high as the bad: the AUROC is 1 less half of their share. If it is lower, or if most of the unlabelled
    /// seem bad, the states may not show what is bad, and the share is no more than an upper bound.
    pub fn tells(&self) -> bool {
        self.share.value <= MOST && self.auroc >= 1.0 - self.share.value / 2.0 - TOLERANCE
    }

    /// Indices of the answers that are most likely bad, as many as the share says, the worst first.
    pub fn worst(&self) -> Vec<usize> {
        worst(&self.scores, self.share.value)
    }

    /// The score from which on an answer is among the worst; infinite if none is.
    pub fn threshold(&self) -> f64 {
        self.worst().last().map_or(f64::INFINITY, |&i| self.scores[i])
    }
}

fn worst(scores: &[f64], share: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate((share * scores.len() as f64).round() as usize);
    order
}

/// The probability that the bounds of [`share`] do not hold, and the slack of its threshold: the paper's.
const DELTA: f64 = 0.1;
const GAMMA: f64 = 0.01;

/// Best Bin Estimation, the paper's algorithm 1: the share of the unlabelled whose scores are distributed as
/// those of the bad ones. Above a threshold c, q_u(c) / q_b(c) is at least that share, and nearly it if
/// hardly any other answer scores as high. c is chosen so that the upper bound of the ratio is smallest.
pub fn share(bad: &[f64], unlabelled: &[f64]) -> f64 {
    let descending = |scores: &[f64]| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted
    };
    let (bad, unlabelled) = (descending(bad), descending(unlabelled));
    let error = |n: usize| ((4.0 / DELTA).ln() / (2.0 * n.max(1) as f64)).sqrt();
    let slack = (1.0 + GAMMA) * (error(unlabelled.len()) + error(bad.len()));
    let (mut best, mut found) = (f64::INFINITY, 1.0);
    let mut above = 0;
    for (i, &c) in bad.iter().enumerate() {
        if bad.get(i + 1) == Some(&c) {
            continue;
        }
        while unlabelled.get(above).is_some_and(|score| *score >= c) {
            above += 1;
        }
        let of_bad = (i + 1) as f64 / bad.len() as f64;
        let ratio = above as f64 / unlabelled.len().max(1) as f64 / of_bad;
        let bound = ratio + slack / of_bad;
        if bound < best {
            (best, found) = (bound, ratio);
        }
    }
    found.min(1.0)
}

/// The parts of a cross-validation.
const FOLDS: usize = 5;
/// The strengths of the ridge that are tried.
const RIDGES: [f64; 4] = [0.003, 0.03, 0.3, 3.0];
/// The most rounds of estimating and fitting, and the change of the share at which they end.
const ROUNDS: usize = 10;
const SETTLED: f64 = 0.002;
const RESAMPLES: usize = 500;

/// The fewest answers of each list from which a share can be estimated.
pub const LEAST: usize = 20;

/// Estimates which of the `unlabelled` states belong to answers like the `bad` ones, by the paper's algorithm
/// 3, (TED)^n: [`share`] and CVIR in turn. CVIR fits a head to the bad and the unlabelled ones without the
/// share of these that looks worst, which are probably bad themselves.
///
/// The heads are linear, and each answer is scored by a head that was fitted without it (the paper holds a
/// validation set out; here each of five parts is held out in turn). `seed` divides them.
///
/// Each list should have [`LEAST`] states or more.
pub fn estimate(bad: &[&[f32]], unlabelled: &[&[f32]], seed: u32) -> Mixture {
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(seed));
    let mut folds = |count: usize| {
        let mut folds: Vec<usize> = (0..count).map(|i| i % FOLDS).collect();
        folds.shuffle(&mut rng);
        folds
    };
    let of_fold = [folds(bad.len()), folds(unlabelled.len())];
    let without = |states: &[&'_ [f32]], folds: &[usize], fold: usize, ignored: &[bool]| -> Vec<usize> {
        (0..states.len()).filter(|&i| folds[i] != fold && !ignored.get(i).is_some_and(|x| *x)).collect()
    };
    let pick = |states: &[&'_ [f32]], items: &[usize]| -> Vec<Vec<f32>> {
        items.iter().map(|&i| states[i].to_vec()).collect()
    };
    let fit = |fold: usize, ignored: &[bool], ridge: f64| {
        let first = pick(bad, &without(bad, &of_fold[0], fold, &[]));
        let second = pick(unlabelled, &without(unlabelled, &of_fold[1], fold, ignored));
        let views =
            [first.iter().map(Vec::as_slice).collect::<Vec<_>>(), second.iter().map(Vec::as_slice).collect()];
        Head::fit(&views[0], &views[1], ridge)
    };
    let heads =
        |ignored: &[bool], ridge: f64| (0..FOLDS).map(|fold| fit(fold, ignored, ridge)).collect::<Vec<_>>();
    let scores = |heads: &[Head]| {
        [(bad, 0), (unlabelled, 1)].map(|(states, which)| {
            (0..states.len()).map(|i| heads[of_fold[which][i]].score(states[i])).collect()
        })
    };
    let held_out_loss = |heads: &[Head]| {
        let [of_bad, of_unlabelled]: [Vec<f64>; 2] = scores(heads);
        let mean = |scores: &[f64], sign: f64| {
            let sum: f64 = scores.iter().map(|score| crate::loss::formula::softplus(-sign * score)).sum();
            sum / scores.len().max(1) as f64
        };
        mean(&of_bad, 1.0) + mean(&of_unlabelled, -1.0)
    };
    let tried = RIDGES.map(|ridge| (ridge, heads(&[], ridge)));
    let [first, others @ ..] = tried.map(|(ridge, heads)| (held_out_loss(&heads), ridge, heads));
    let better = |a: (f64, f64, Vec<Head>), b: (f64, f64, Vec<Head>)| if b.0 < a.0 { b } else { a };
    let (_, ridge, mut fitted) = others.into_iter().fold(first, better);
    let [mut of_bad, mut of_unlabelled]: [Vec<f64>; 2] = scores(&fitted);
    let mut found = share(&of_bad, &of_unlabelled);
    for _ in 0..ROUNDS {
        let mut ignored = vec![false; unlabelled.len()];
        worst(&of_unlabelled, found).into_iter().for_each(|i| ignored[i] = true);
        fitted = heads(&ignored, ridge);
        [of_bad, of_unlabelled] = scores(&fitted);
        let next = share(&of_bad, &of_unlabelled);
        let moved = (next - found).abs();
        found = next;
        if moved < SETTLED {
            break;
        }
    }
    let resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut again = |scores: &[f64]| -> Vec<f64> {
                scores.iter().map(|_| scores[rng.random_range(0..scores.len())]).collect()
            };
            share(&again(&of_bad), &again(&of_unlabelled))
        })
        .collect();
    let all = [&of_bad[..], &of_unlabelled].concat();
    let flags: Vec<bool> = (0..all.len()).map(|i| i < of_bad.len()).collect();
    Mixture {
        share: Estimate::of_resamples(found, resampled),
        auroc: auroc(&all, &flags),
        scores: of_unlabelled,
        head: Head::mean(&fitted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_bin_by_hand() {
        // 100 bad ones score 1 to 100. Of 400 unlabelled ones, 100 are the same and 300 score less than 0.
        let bad: Vec<f64> = (1..=100).map(f64::from).collect();
        let mut unlabelled = bad.clone();
        unlabelled.extend((0..300).map(|i| -1.0 - f64::from(i)));
        assert_eq!(share(&bad, &unlabelled), 0.25);
        // Others that score as high among the lowest bad scores move the bin up, away from them.
        unlabelled.extend((0..400).map(|i| 1.0 + f64::from(i % 10)));
        let found = share(&bad, &unlabelled);
        assert!((0.12..0.13).contains(&found), "{found}");
        assert_eq!(share(&bad, &[-1.0; 50]), 0.0);
        assert_eq!(share(&bad, &bad), 1.0);
    }

    /// States of two kinds that overlap a little.
    fn states(rng: &mut ChaCha8Rng, count: usize, kind: f32) -> Vec<Vec<f32>> {
        let mut noise = || (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() / 1.4;
        (0..count).map(|_| (0..24).map(|i| noise() + if i < 4 { kind } else { 0.0 }).collect()).collect()
    }

    #[test]
    fn the_share_of_a_mixture_is_found() {
        let mut errors = Vec::new();
        for truth in [0.0, 0.1, 0.2, 0.4] {
            for seed in 0..3 {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let bad = states(&mut rng, 300, 1.4);
                let count = (600.0 * truth) as usize;
                let mut mixed = states(&mut rng, count, 1.4);
                mixed.extend(states(&mut rng, 600 - count, -1.4));
                let bad: Vec<&[f32]> = bad.iter().map(Vec::as_slice).collect();
                let mixed: Vec<&[f32]> = mixed.iter().map(Vec::as_slice).collect();
                let found = estimate(&bad, &mixed, seed as u32);
                assert!((found.share.value - truth).abs() < 0.05, "{truth}: {:?}", found.share);
                assert!(found.tells(), "{}", found.auroc);
                assert!(found.share.low <= found.share.value && found.share.value <= found.share.high);
                errors.push(found.share.value - truth);
                // Nearly all of the worst are bad, and further answers are told apart.
                let worst = found.worst();
                let right = worst.iter().filter(|&&i| i < count).count();
                assert!(right as f64 >= 0.85 * count as f64, "{right} of {count}");
                let more = [states(&mut rng, 50, 1.4), states(&mut rng, 50, -1.4)];
                let above = more.map(|list| list.iter().filter(|s| found.head.score(s) > 0.0).count());
                assert!(above[0] > 45 && above[1] < 5, "{above:?}");
            }
        }
        let mean = errors.iter().map(|e: &f64| e.abs()).sum::<f64>() / errors.len() as f64;
        assert!(mean < 0.025, "{errors:?}");
    }

    /// States that do not show what is bad, as those of few answers of a large model can be.
    #[test]
    fn states_that_tell_nothing_are_not_believed() {
        for seed in 0..4 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let wide = |rng: &mut ChaCha8Rng, count: usize, kind: f32| -> Vec<Vec<f32>> {
                let mut all = states(rng, count, kind);
                all.iter_mut()
                    .for_each(|state| state.extend((0..200).map(|_| rng.random_range(-1.0f32..1.0))));
                all
            };
            let (bad, others) = (wide(&mut rng, 80, 0.05), wide(&mut rng, 150, -0.05));
            let bad: Vec<&[f32]> = bad.iter().map(Vec::as_slice).collect();
            let others: Vec<&[f32]> = others.iter().map(Vec::as_slice).collect();
            let found = estimate(&bad, &others, seed as u32);
            assert!(!found.tells(), "{:?} {}", found.share, found.auroc);
        }
    }
}
