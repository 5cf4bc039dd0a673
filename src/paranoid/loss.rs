//! Log-probabilities, the gradients of the logits, and the losses.

use super::{Output, UNIT, Witnessed, of_sum};
use crate::kernels::{SERIAL_COLUMNS, log_prob, preference, retain};
use crate::loss::{Formula, Retain, Terms};
use crate::reference::{self, preference::Outcome};

/// The target of a row, given by its index in the chunk.
fn target(predict: &super::Bound, p: log_prob::Params, row: usize) -> u32 {
    predict.four(p.first as usize + row)[1]
}

/// Bindings: logits, predict, stats.
pub(super) fn log_prob(seen: &Witnessed) -> Vec<Output> {
    let p: log_prob::Params = seen.params();
    let [rows, vocab, first, total] = [p.rows, p.vocab, p.first, p.total].map(|size| size as usize);
    let own = [0, 1, 2].map(|which| which * total + first..which * total + first + rows);
    let mut output = Output::new(2, own.into());
    for row in seen.pick_rows(rows, vocab) {
        let logits = seen.bound[0].range(row * vocab, vocab);
        let target = target(&seen.bound[1], p, row);
        let found = reference::log_prob::forward(&logits, &[target], vocab);
        let lse = found.lse[0];
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Wide rows are summed by a workgroup. The relative error of a sum is the absolute error of its
        // logarithm.
        let share = 1e-5 + of_sum(vocab.min(SERIAL_COLUMNS).max(vocab / 64));
        let size = share + 8.0 * UNIT * (lse.abs() + most.abs() + logits[target as usize].abs());
        // The sizes of the terms p · logit of the entropy, each with the error of its p.
        let term =
            |l: &f64| if l.is_finite() { (l - lse).exp() * l.abs() * (1.0 + (l - lse).abs()) } else { 0.0 };
        let spread: f64 = logits.iter().map(term).sum();
        output.near(first + row, found.logp[0], size);
        output.near(total + first + row, lse, size);
        output.near(2 * total + first + row, found.entropy[0], size + share * spread);
    }
    vec![output]
}

/// Bindings: predict, stats, the coefficient (not with UNIT), and logits.
pub(super) fn log_prob_backward(seen: &Witnessed) -> Vec<Output> {
    let p: log_prob::Params = seen.params();
    let [rows, vocab, first, total] = [p.rows, p.vocab, p.first, p.total].map(|size| size as usize);
    let last = seen.bound.len() - 1;
    let mut output = Output::first(last, rows * vocab);
    for row in seen.pick_rows(rows, vocab) {
        let logits = seen.bound[last].range(row * vocab, vocab);
        let (target, lse) = (target(&seen.bound[0], p, row), seen.bound[1].at(total + first + row));
        let coefficient = if seen.has("UNIT") { 1.0 } else { seen.bound[2].at(first + row) };
        let mut gradient = reference::log_prob::backward(&logits, &[target], &[lse], &[coefficient], vocab);
        if seen.has("CAP") {
            gradient = reference::soft_cap::backward(&logits, &gradient, f64::from(p.cap));
        }
        let slack = |i: usize| {
            let off = (logits[i] - lse).exp() * (1e-5 + 4.0 * UNIT * (logits[i].abs() + lse.abs()));
            coefficient.abs() * (off + if i == target as usize { 4.0 * UNIT } else { 0.0 })
        };
        output.row(row * vocab, &gradient, slack);
    }
    vec![output]
}

/// The formula of a parameter block, for groups of `n` sequences.
fn formula(p: &preference::Params, n: usize) -> Formula {
    let [alpha, beta, gamma] = [p.alpha, p.beta, p.gamma].map(f64::from);
    match (p.formula, p.relative == 1, n) {
        (0, ..) if p.weight < 0.0 => Formula::Sft,
        (0, ..) => Formula::Ga,
        (1, ..) => Formula::Ul,
        (2, false, 1) => Formula::Simnpo { beta, gamma },
        (2, false, _) => Formula::Simpo { beta, gamma },
        // NPO's weight is 2 / beta. If it is 1, NPO agrees with D²O.
        (2, true, 1) if p.weight != 1.0 => Formula::Npo { beta },
        (2, true, 2) if p.smoothing != 0.0 => Formula::Dpo { beta, label_smoothing: f64::from(p.smoothing) },
        // DPO is D²O with one anchor.
        (2, ..) => Formula::D2o { alpha, beta },
        (3, ..) => Formula::Ipo { beta },
        (4, true, _) => Formula::Hinge { beta },
        (4, ..) => Formula::Slic { delta: gamma, sft_weight: f64::from(p.sft_weight) },
        (5, ..) => Formula::Orpo { beta },
        _ => Formula::Kto { beta, desirable_weight: f64::from(p.weight), undesirable_weight: alpha },
    }
}

/// Bindings: groups, rows, stats, weights, reference, outcome, coefficient.
pub(super) fn preference(seen: &Witnessed) -> Vec<Output> {
    let p: preference::Params = seen.params();
    let pair = |binding: usize, i: usize| [2 * i, 2 * i + 1].map(|i| seen.bound[binding].word(i) as usize);
    let negative_floor = (p.floor > f32::MIN).then(|| -f64::from(p.floor));
    let terms = Terms { length_normalize: p.per_token == 1, kl: f64::from(p.kl), negative_floor };
    let mut of_outcome = Output::first(5, 4 * p.groups as usize);
    let mut of_coefficient = Output::new(6, Vec::new());
    for group in 0..p.groups as usize {
        let [first, end] = pair(0, group);
        let spans: Vec<[usize; 2]> = (first..end).map(|s| pair(1, s)).collect();
        let formula = formula(&p, spans.len());
        // The outcome with log-probs changed by the relative amount `nudge`: the last sequence's in one
        // direction, the others' in the other. A nudge of 0 gives the outcome itself.
        let with = |nudge: f64| -> Outcome {
            let off = |s: usize| 1.0 + if s + 1 == spans.len() { -nudge } else { nudge };
            let of = |(s, [start, end]): (usize, &[usize; 2])| -> Vec<f64> {
                seen.bound[2].range(*start, end - start).iter().map(|logp| logp * off(s)).collect()
            };
            let policy: Vec<Vec<f64>> = spans.iter().enumerate().map(of).collect();
            let policy: Vec<&[f64]> = policy.iter().map(Vec::as_slice).collect();
            let weights: Vec<Vec<f64>> =
                spans.iter().map(|[start, end]| seen.bound[3].range(*start, end - start).to_vec()).collect();
            let weights: Vec<&[f64]> = weights.iter().map(Vec::as_slice).collect();
            let reference: Vec<f64> =
                (0..spans.len()).map(|s| seen.bound[4].at(first + s) / off(s)).collect();
            reference::preference::forward(formula, &policy, Some(&weights), &reference, terms)
        };
        let whole = with(0.0);
        let nudged = [with(1e-6), with(-1e-6)];
        let numbers = |o: &Outcome| [o.loss, o.margin(), o.rewards[0], o.rewards[1]];
        let slack = |of: &dyn Fn(&Outcome) -> f64| {
            let off = nudged.iter().map(|nudged| (of(nudged) - of(&whole)).abs()).sum::<f64>();
            off + 8.0 * UNIT * (1.0 + of(&whole).abs())
        };
        for i in 0..4 {
            of_outcome.near(4 * group + i, numbers(&whole)[i], slack(&|o| numbers(o)[i]));
        }
        let most = whole.coefficients.iter().flatten().fold(0.0, |most: f64, c| most.max(c.abs()));
        let divisor = f64::from(p.divisor);
        for (s, [start, end]) in spans.into_iter().enumerate() {
            for (i, row) in (start..end).enumerate() {
                let of = |o: &Outcome| o.coefficients[s][i];
                let off = nudged.iter().map(|nudged| (of(nudged) - of(&whole)).abs()).sum::<f64>();
                of_coefficient.near(row, of(&whole) / divisor, (off + 1e-5 * most) / divisor);
            }
            of_coefficient.written.push(start..end);
        }
    }
    vec![of_outcome, of_coefficient]
}

/// Bindings: predict, rows, stats, start, coefficient.
pub(super) fn retain(seen: &Witnessed) -> Vec<Output> {
    let p: retain::Params = seen.params();
    let (first, count) = (p.first as usize, p.rows as usize);
    let form = if p.kl == 1 { Retain::Kl } else { Retain::Sft };
    let own = first..first + count;
    let mut output = Output::new(4, [own].into());
    for row in seen.pick_rows(count, 1).into_iter().map(|i| first + i) {
        let sequence = seen.bound[0].four(row)[2] as usize;
        let [start, end] = [2 * sequence, 2 * sequence + 1].map(|i| f64::from(seen.bound[1].word(i)));
        let (logp, before) = (seen.bound[2].at(row), seen.bound[3].at(row));
        let share = f64::from(p.scale) / (end - start);
        let slope = form.slope(logp, before);
        // The error of d becomes that of e^d.
        let off = 8.0 * UNIT * (1.0 + slope.abs()) * (1.0 + logp.abs() + before.abs());
        output.near(row, share * slope, share.abs() * off);
    }
    vec![output]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula that is read from a parameter block has the same loss as the formula that the block was
    /// made from, for any rounding of beta.
    #[test]
    fn a_method_comes_back_from_its_parameters() {
        let outcome = |formula: Formula, n: usize| {
            let policy: Vec<&[f64]> = [&[-1.5, -0.5][..], &[-0.25], &[-3.0]][..n].to_vec();
            let reference = [-1.0, -1.25, -2.0];
            reference::preference::forward(formula, &policy, None, &reference[..n], Terms::default())
        };
        for hundredth in 1..=300 {
            let beta = f64::from(hundredth) / 100.0;
            let methods = [
                (Formula::Sft, 1),
                (Formula::Ga, 1),
                (Formula::Ul, 1),
                (Formula::Dpo { beta, label_smoothing: 0.0 }, 2),
                (Formula::Dpo { beta, label_smoothing: 0.1 }, 2),
                (Formula::Ipo { beta }, 2),
                (Formula::Hinge { beta }, 2),
                (Formula::Slic { delta: beta, sft_weight: 0.5 }, 2),
                (Formula::Simpo { beta, gamma: 0.5 }, 2),
                (Formula::Orpo { beta }, 2),
                (Formula::Npo { beta }, 1),
                (Formula::Simnpo { beta, gamma: 0.5 }, 1),
                (Formula::D2o { alpha: 0.1, beta }, 3),
                (Formula::D2o { alpha: 0.1, beta }, 1),
            ];
            for (of, n) in methods {
                let params =
                    preference::Params { relative: of.has_reference().into(), ..preference::Params::of(of) };
                let (expected, found) = (outcome(of, n), outcome(formula(&params, n), n));
                assert!((expected.loss - found.loss).abs() < 1e-6 * (1.0 + expected.loss.abs()), "{of:?}");
                let slopes = |o: &Outcome| o.coefficients.concat();
                for (a, b) in slopes(&expected).into_iter().zip(slopes(&found)) {
                    assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{of:?}: {a} and {b}");
                }
            }
        }
    }
}
