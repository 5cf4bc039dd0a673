//! Statistics: figures with bootstrap intervals, and how well scores separate two classes.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A figure with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure over all items.
    pub value: f64,
    /// 2.5% of the resamples are below this.
    pub low: f64,
    /// 2.5% of the resamples are above this.
    pub high: f64,
}

/// The number of resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// `figure` of the items 0..count, with the interval of the percentile bootstrap: the items (prompts) are
/// resampled with replacement (Efron, "Bootstrap methods: another look at the jackknife"). The same count
/// always gives the same resamples.
pub fn bootstrap(count: usize, figure: &dyn Fn(&[usize]) -> f64) -> Estimate {
    let all: Vec<usize> = (0..count).collect();
    let value = figure(&all);
    if count == 0 {
        return Estimate { value, low: value, high: value };
    }
    let mut rng = ChaCha8Rng::seed_from_u64(count as u64);
    let found = (0..RESAMPLES)
        .map(|_| figure(&all.iter().map(|_| rng.random_range(0..count)).collect::<Vec<_>>()))
        .filter(|value| value.is_finite());
    Estimate::of_resamples(value, found.collect())
}

impl Estimate {
    /// `value` with the interval that holds 95% of the figures of its resamples.
    pub fn of_resamples(value: f64, mut found: Vec<f64>) -> Self {
        found.sort_by(f64::total_cmp);
        let at = |share: f64| found.get((share * (found.len() as f64 - 1.0)).round() as usize).copied();
        let (low, high) = (at(0.025).unwrap_or(value), at(0.975).unwrap_or(value));
        Self { value, low: low.min(value), high: high.max(value) }
    }
}

/// The mean of `values`.
pub fn mean(values: &[f64]) -> Estimate {
    bootstrap(values.len(), &|items| {
        items.iter().map(|&i| values[i]).sum::<f64>() / items.len().max(1) as f64
    })
}

/// exp of minus the mean log-prob per token. `texts` holds (summed log-prob, tokens) of each text.
pub fn perplexity(texts: &[(f64, usize)]) -> Estimate {
    bootstrap(texts.len(), &|items| {
        let (logp, tokens) = items.iter().fold((0.0, 0), |(l, t), &i| (l + texts[i].0, t + texts[i].1));
        (-logp / tokens.max(1) as f64).exp()
    })
}

/// The change of [`perplexity`] from `before` to `after`, as a share. Both have the same texts in the same
/// order, which are paired in each resample.
pub fn perplexity_change(before: &[(f64, usize)], after: &[(f64, usize)]) -> Estimate {
    bootstrap(before.len(), &|items| {
        let per_token = |texts: &[(f64, usize)]| {
            let (logp, tokens) = items.iter().fold((0.0, 0), |(l, t), &i| (l + texts[i].0, t + texts[i].1));
            logp / tokens.max(1) as f64
        };
        (per_token(before) - per_token(after)).exp() - 1.0
    })
}

/// The mean of `ours` minus `theirs`, prompt by prompt, and the smallest difference that this many prompts
/// would show: with it, a 95% interval excludes 0 eight times in ten. That is 2.80 standard errors of the
/// paired differences (Cohen, "Statistical Power Analysis for the Behavioral Sciences"). For yes-or-no scores
/// (`shares`) it is at least 5.5 / n: if all changes are in one direction, a bootstrap interval excludes 0
/// from the fourth changed prompt on, and with 5.5 expected, four or more occur eight times in ten. `None`
/// for other scores that never differ.
pub fn difference(ours: &[f64], theirs: &[f64], shares: bool) -> (Estimate, Option<f64>) {
    let apart: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
    let (found, n) = (mean(&apart), apart.len().max(1) as f64);
    let squares: f64 = apart.iter().map(|d| (d - found.value).powi(2)).sum();
    let error = (squares / (n - 1.0).max(1.0) / n).sqrt();
    let detectable = match shares {
        true => Some((2.80 * error).clamp((5.5 / n).min(1.0), 1.0)),
        false => (error > 0.0).then_some(2.80 * error),
    };
    (found, detectable)
}

/// The share of prompts for which `ours` is lower (better) than `theirs`; a tie counts half.
pub fn win_rate(ours: &[f64], theirs: &[f64]) -> Estimate {
    let wins: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| {
            if a < b {
                1.0
            } else if a > b {
                0.0
            } else {
                0.5
            }
        })
        .collect();
    mean(&wins)
}

/// The probability that a flagged item scores higher than a fine one; equal scores count half. NaN if one
/// class is missing.
pub fn auroc(scores: &[f64], flagged: &[bool]) -> f64 {
    // From the ranks of the flagged items (Mann and Whitney's U); equal scores share their mean rank.
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut ranks = vec![0.0; scores.len()];
    let mut at = 0;
    while at < order.len() {
        let same =
            order[at..].iter().take_while(|&&i| scores[i].total_cmp(&scores[order[at]]).is_eq()).count();
        order[at..at + same].iter().for_each(|&i| ranks[i] = at as f64 + (same as f64 + 1.0) / 2.0);
        at += same;
    }
    let bad = flagged.iter().filter(|&&f| f).count() as f64;
    let good = flagged.len() as f64 - bad;
    let sum: f64 = ranks.iter().zip(flagged).filter(|(_, f)| **f).map(|(rank, _)| rank).sum();
    (sum - bad * (bad + 1.0) / 2.0) / (bad * good)
}

/// [`auroc`] with its interval.
pub fn auroc_estimate(scores: &[f64], flagged: &[bool]) -> Estimate {
    bootstrap(scores.len(), &|items| {
        let scores: Vec<f64> = items.iter().map(|&i| scores[i]).collect();
        let flagged: Vec<bool> = items.iter().map(|&i| flagged[i]).collect();
        auroc(&scores, &flagged)
    })
}

/// The probabilities in one tenth of 0..1, for a calibration table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// The lower end of the bin.
    pub from: f64,
    /// The number of probabilities in the bin.
    pub count: usize,
    /// The mean of these probabilities.
    pub predicted: f64,
    /// The share of these answers that is flagged.
    pub flagged: f64,
}

/// Statistics of probabilities of being flagged against the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classified {
    /// The number of answers.
    pub count: usize,
    /// The share of flagged answers.
    pub flagged_share: f64,
    /// The share of answers classified correctly, with one half as the threshold.
    pub accuracy: Estimate,
    /// Area under the ROC curve; 0.5 is chance.
    pub auroc: Estimate,
    /// Mean squared error of the probability (Brier).
    pub brier: f64,
    /// Expected calibration error over ten bins (Naeini et al., 2015; Guo et al., 1706.04599).
    pub calibration_error: f64,
    /// The bins that are not empty.
    pub bins: Vec<CalibrationBin>,
}

impl Classified {
    /// The figures of `probabilities` against the verdicts in `flagged`.
    pub fn of(probabilities: &[f64], flagged: &[bool]) -> Self {
        let count = flagged.len();
        let right: Vec<f64> =
            probabilities.iter().zip(flagged).map(|(p, f)| f64::from(u8::from((*p > 0.5) == *f))).collect();
        let squared = |(p, f): (&f64, &bool)| (p - f64::from(u8::from(*f))).powi(2);
        let bins: Vec<CalibrationBin> = (0..10)
            .filter_map(|bin| {
                let inside: Vec<usize> =
                    (0..count).filter(|&i| ((probabilities[i] * 10.0) as usize).min(9) == bin).collect();
                let n = inside.len() as f64;
                (!inside.is_empty()).then(|| CalibrationBin {
                    from: bin as f64 / 10.0,
                    count: inside.len(),
                    predicted: inside.iter().map(|&i| probabilities[i]).sum::<f64>() / n,
                    flagged: inside.iter().filter(|&&i| flagged[i]).count() as f64 / n,
                })
            })
            .collect();
        let error = |bin: &CalibrationBin| bin.count as f64 * (bin.predicted - bin.flagged).abs();
        let all = count.max(1) as f64;
        Self {
            count,
            flagged_share: flagged.iter().filter(|&&f| f).count() as f64 / all,
            accuracy: mean(&right),
            auroc: auroc_estimate(probabilities, flagged),
            brier: probabilities.iter().zip(flagged).map(squared).sum::<f64>() / all,
            calibration_error: bins.iter().map(error).sum::<f64>() / all,
            bins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auroc_by_hand() {
        // Pairs (flagged, fine): 0.9 beats both, 0.4 beats 0.2 and ties with 0.4.
        let (scores, flagged) = ([0.9, 0.4, 0.4, 0.2], [true, true, false, false]);
        assert_eq!(auroc(&scores, &flagged), 3.5 / 4.0);
        assert_eq!(auroc(&[1.0; 4], &flagged), 0.5);
        assert!(auroc(&[1.0], &[true]).is_nan());
    }

    #[test]
    fn an_interval_holds_its_value_and_narrows_with_the_count() {
        let values = |n: usize| (0..n).map(|i| f64::from(u8::from(i % 3 == 0))).collect::<Vec<_>>();
        let (few, many) = (mean(&values(30)), mean(&values(3000)));
        for found in [few, many] {
            assert!(found.low <= found.value && found.value <= found.high, "{found:?}");
            assert!((found.value - 1.0 / 3.0).abs() < 1e-12);
        }
        // 1.96 standard errors of a share of a third.
        assert!((few.high - few.low - 2.0 * 1.96 * (2.0f64 / 9.0 / 30.0).sqrt()).abs() < 0.06, "{few:?}");
        assert!(many.high - many.low < (few.high - few.low) / 5.0);
        assert_eq!(mean(&values(30)), few);
    }

    #[test]
    fn calibration_by_hand() {
        let found = Classified::of(&[0.95, 0.95, 0.05, 0.05], &[true, false, false, false]);
        assert_eq!((found.accuracy.value, found.bins.len()), (0.75, 2));
        assert!((found.calibration_error - (0.5 * 0.45 + 0.5 * 0.05)).abs() < 1e-12);
        assert!((found.brier - (0.0025 * 3.0 + 0.9025) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn differences_say_what_they_can_show() {
        // 40 of 100 against 20 of 100, on the same prompts: 25 were mended and 5 spoiled.
        let theirs: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i < 40))).collect();
        let ours: Vec<f64> = (0..100).map(|i| f64::from(u8::from((25..45).contains(&i)))).collect();
        let (found, detectable) = difference(&ours, &theirs, true);
        assert!((found.value + 0.2).abs() < 1e-12 && found.high < 0.0, "{found:?}");
        // Variance of a paired difference: 0.3 - 0.2^2.
        let expected = 2.80 * (0.26f64 * 100.0 / 99.0 / 100.0).sqrt();
        assert!((detectable.unwrap() - expected).abs() < 1e-12, "{detectable:?} {expected}");
        assert_eq!(difference(&theirs, &theirs, true).1, Some(0.055));
        assert_eq!(difference(&theirs[..3], &theirs[..3], true).1, Some(1.0));
        assert_eq!(difference(&theirs, &theirs, false), (Estimate { value: 0.0, low: 0.0, high: 0.0 }, None));
        let change = perplexity_change(&[(-2.0, 2), (-4.0, 2)], &[(-2.2, 2), (-4.4, 2)]);
        assert!((change.value - (0.15f64.exp() - 1.0)).abs() < 1e-12 && change.low > 0.1);
    }

    #[test]
    fn words_and_wins() {
        assert_eq!(win_rate(&[0.0, 1.0, 2.0, 0.0], &[1.0, 1.0, 1.0, 1.0]).value, 2.5 / 4.0);
        let found = perplexity(&[(-2.0, 2), (-4.0, 2)]);
        assert!((found.value - 1.5f64.exp()).abs() < 1e-12 && found.low >= 1f64.exp() - 1e-9);
    }
}
