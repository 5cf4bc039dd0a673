//! From logits to a loss and back: token log-probabilities in chunks, sums over sequences, and the preference
//! losses.

use std::f64::consts::LN_2;

use super::fixture::{Output, below, floats, values, words};
use super::{Check, Depth, Outcome, check};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::log_prob::{self, Chunk};
use crate::kernels::preference::{self, Batch, Count};
use crate::kernels::{retain, row_scale, sequence_sum};
use crate::loss::{Formula, Retain, Terms};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("log_prob", chunks),
        check!("retain", retained),
        check!("row_scale", scaled_rows),
        check!("sequence_sum", sums),
        check!("preference_table", table),
        check!("preference_groups", groups),
        check!("preference_likely_tokens", likely),
    ]
}

/// Logits `(rows, vocab)` of several kinds: wide, far from zero, and with one much larger than the rest.
fn logits(rows: usize, vocab: usize) -> Vec<f64> {
    let mut all = values(1, rows * vocab, 8.0);
    for (r, row) in all.chunks_exact_mut(vocab).enumerate() {
        match r % 4 {
            1 => row.iter_mut().for_each(|l| *l = f64::from((*l - 64.0) as f32)),
            2 => row[vocab / 2] = 50.0,
            _ => {}
        }
    }
    all
}

async fn chunks(gpu: &Gpu, depth: Depth) -> Outcome {
    // Rows, vocabulary, rows of a chunk; the last chunk may be short.
    for &(total, vocab, most) in depth.of(&[
        (5, 67, 2),
        (17, 64, 8),
        (1, 1, 1),
        (9, 300, 4),
        (3, 2053, 3),
        (20, 7, 9),
        (70, 63, 65),
        (2, 70_001, 2),
    ]) {
        let what = format!("rows={total} vocab={vocab} chunk={most}");
        let all = logits(total, vocab);
        // A cap that is larger than all logits.
        let cap = 2.0 * all.iter().fold(1.0f64, |most, l| most.max(l.abs()));
        let target: Vec<u32> = (0..total as u32).map(|r| below(vocab as u32, 5, r)).collect();
        let sequence: Vec<u32> = (0..total as u32).map(|r| r / 3).collect();
        let coefficient = values(2, total, 1.0);
        let expected = reference::log_prob::forward(&all, &target, vocab);
        let dlogits = reference::log_prob::backward(&all, &target, &expected.lse, &coefficient, vocab);
        let ones = vec![1.0; coefficient.len()];
        let dlogp = reference::log_prob::backward(&all, &target, &expected.lse, &ones, vocab);
        let predict: Vec<u32> =
            target.iter().zip(&sequence).flat_map(|(&target, &s)| [u32::MAX, target, s, u32::MAX]).collect();
        let (predict, coefficient) = (words(gpu, &predict)?, floats(gpu, &coefficient)?);
        let stats = Output::fresh(gpu, 3 * total)?;
        let mut gradients = Vec::new();
        let mut rec = Recorder::new(gpu);
        for first in (0..total).step_by(most) {
            let rows = most.min(total - first);
            let held = Output::holding(gpu, &all[first * vocab..(first + rows) * vocab])?;
            let chunk = Chunk { rows, first, total, vocab, cap: None };
            log_prob::forward(&mut rec, &held.tensor, &predict, &stats.tensor, chunk)?;
            // Both forms of the kernel. The one without coefficients gets its own copy of the logits.
            let unit = Output::holding(gpu, &all[first * vocab..(first + rows) * vocab])?;
            log_prob::backward(&mut rec, &predict, &stats.tensor, None, &unit.tensor, chunk)?;
            log_prob::backward(&mut rec, &predict, &stats.tensor, Some(&coefficient), &held.tensor, chunk)?;
            let capped = Output::holding(gpu, &all[first * vocab..(first + rows) * vocab])?;
            let chunk = Chunk { cap: Some(cap as f32), ..chunk };
            log_prob::backward(&mut rec, &predict, &stats.tensor, Some(&coefficient), &capped.tensor, chunk)?;
            gradients.push((first, rows, held, unit, capped));
        }
        rec.submit();
        let rows = [expected.logp, expected.lse, expected.entropy].concat();
        stats.expect(gpu, format!("logp, lse and entropy, {what}"), &rows).await?;
        for (first, rows, held, unit, capped) in gradients {
            let part = first * vocab..(first + rows) * vocab;
            held.expect(gpu, format!("dlogits from row {first} on, {what}"), &dlogits[part.clone()]).await?;
            unit.expect(gpu, format!("dlogp from row {first} on, {what}"), &dlogp[part.clone()]).await?;
            let uncapped = reference::soft_cap::backward(&all[part.clone()], &dlogits[part], cap);
            capped
                .expect(gpu, format!("dlogits before the cap from row {first} on, {what}"), &uncapped)
                .await?;
        }
    }
    Ok(())
}

async fn retained(gpu: &Gpu, depth: Depth) -> Outcome {
    // The first of these answers belong to another loss, and their coefficients stay as they are.
    let cases: [(&[u32], usize); 4] = [(&[3, 5, 1, 7], 2), (&[1], 0), (&[64, 65, 63], 1), (&[1; 67], 3)];
    for (form, &(lengths, others)) in
        [Retain::Sft, Retain::Kl, Retain::Kl, Retain::Sft].into_iter().zip(depth.of(&cases))
    {
        let (rows, total) = spans(lengths);
        let first = rows[others][0] as usize;
        let logp: Vec<f64> = values(1, total, 2.0).iter().map(|v| v - 2.5).collect();
        // Differences of all sizes, from none to several nats.
        let apart = values(2, total, 1.0).into_iter().enumerate();
        let start: Vec<f64> =
            apart.map(|(i, v)| f64::from((logp[i] + v * v * v * [0.0, 0.01, 4.0][i % 3]) as f32)).collect();
        let held = values(3, total, 1.0);
        let sequence = |r: usize| rows.iter().position(|row| (r as u32) < row[1]).unwrap_or(0) as u32;
        let predict: Vec<u32> =
            (0..total).flat_map(|r| [u32::MAX, u32::MAX, sequence(r), u32::MAX]).collect();
        let mut stats = logp.clone();
        stats.resize(3 * total, f64::NAN);
        let out = Output::holding(gpu, &held)?;
        let batch = retain::Batch {
            predict: &words(gpu, &predict)?,
            rows: &words(gpu, rows.as_flattened())?,
            stats: &floats(gpu, &stats)?,
            start: &floats(gpu, &start)?,
            coefficient: &out.tensor,
        };
        let mut rec = Recorder::new(gpu);
        retain::forward(&mut rec, form, batch, (first, total - first), 0.75)?;
        rec.submit();
        let mut expected = reference::retain::forward(form, &logp, &start, &rows, 0.75);
        expected[..first].copy_from_slice(&held[..first]);
        out.expect(gpu, format!("{form:?}, lengths {lengths:?} from {others} on"), &expected).await?;
    }
    Ok(())
}

async fn scaled_rows(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&[(5, 67), (1, 1), (64, 8), (17, 31)]) {
        let x = values(1, rows * width, 1.0);
        let coefficient = values(2, rows, 1.0);
        let out = Output::holding(gpu, &x)?;
        let mut rec = Recorder::new(gpu);
        row_scale::forward(&mut rec, &floats(gpu, &coefficient)?, &out.tensor, (rows, width))?;
        rec.submit();
        let expected = reference::row_scale::forward(&x, &coefficient, width);
        out.expect(gpu, format!("rows={rows} width={width}"), &expected).await?;
    }
    Ok(())
}

async fn sums(gpu: &Gpu, depth: Depth) -> Outcome {
    let cases: [&[u32]; 4] = [&[3, 1, 0, 7], &[1], &[40, 2, 2, 19, 1], &[1; 67]];
    for &lengths in depth.of(&cases) {
        let (spans, total) = spans(lengths);
        let stats = values(1, 3 * total, 4.0);
        let out = Output::fresh(gpu, 2 * lengths.len())?;
        let mut rec = Recorder::new(gpu);
        let (spans_tensor, stats_tensor) = (words(gpu, spans.as_flattened())?, floats(gpu, &stats)?);
        sequence_sum::forward(&mut rec, &spans_tensor, &stats_tensor, &out.tensor, lengths.len(), total)?;
        rec.submit();
        let mut expected = reference::sequence_sum::forward(&stats[..total], &spans);
        expected.extend(reference::sequence_sum::forward(&stats[2 * total..], &spans));
        out.expect(gpu, format!("lengths {lengths:?}"), &expected).await?;
    }
    Ok(())
}

/// Consecutive ranges [start, end) with these lengths, and the end of the last one.
fn spans(lengths: &[u32]) -> (Vec<[u32; 2]>, usize) {
    let mut end = 0;
    let spans = lengths.iter().map(|&length| {
        end += length;
        [end - length, end]
    });
    (spans.collect(), end as usize)
}

/// A batch of groups for one dispatch.
struct Groups {
    sizes: Vec<u32>,
    /// The token log-probs of each sequence.
    tokens: Vec<Vec<f64>>,
    /// The weight of each of these.
    weights: Vec<Vec<f64>>,
    reference: Vec<f64>,
}

impl Groups {
    /// The outcome `(N, 4)` and coefficients `(R)` of the f64 formula.
    fn expected(&self, formula: Formula, terms: Terms, divisor: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut outcome, mut coefficient) = (Vec::new(), Vec::new());
        for [start, end] in spans(&self.sizes).0 {
            let group = start as usize..end as usize;
            let policy: Vec<&[f64]> = self.tokens[group.clone()].iter().map(Vec::as_slice).collect();
            let weights: Vec<&[f64]> = self.weights[group.clone()].iter().map(Vec::as_slice).collect();
            let reference = &self.reference[group];
            let one = reference::preference::forward(formula, &policy, Some(&weights), reference, terms);
            outcome.extend([one.loss, one.margin(), one.rewards[0], one.rewards[1]]);
            coefficient.extend(one.coefficients.concat().iter().map(|c| c / divisor as f64));
        }
        (outcome, coefficient)
    }

    /// The kernel's outcome and coefficients, compared with the expected ones.
    async fn expect(
        &self,
        gpu: &Gpu,
        formula: Formula,
        (terms, divisor): (Terms, usize),
        what: &str,
        (outcome, coefficient): (&[f64], &[f64]),
    ) -> Outcome {
        let (groups, _) = spans(&self.sizes);
        let lengths: Vec<u32> = self.tokens.iter().map(|tokens| tokens.len() as u32).collect();
        let (rows, total) = spans(&lengths);
        // The log-sum-exps and entropies are NaN: no loss reads them.
        let mut stats = self.tokens.concat();
        stats.resize(3 * total, f64::NAN);
        let outputs = [Output::fresh(gpu, 4 * groups.len())?, Output::fresh(gpu, total)?];
        let batch = Batch {
            groups: &words(gpu, groups.as_flattened())?,
            rows: &words(gpu, rows.as_flattened())?,
            stats: &floats(gpu, &stats)?,
            weights: &floats(gpu, &self.weights.concat())?,
            reference: &floats(gpu, &self.reference)?,
            outcome: &outputs[0].tensor,
            coefficient: &outputs[1].tensor,
        };
        let mut rec = Recorder::new(gpu);
        let count = Count { groups: groups.len(), sequences: rows.len(), rows: total };
        preference::forward(&mut rec, formula, batch, count, terms, divisor)?;
        rec.submit();
        outputs[0].expect(gpu, format!("outcome, {what}"), outcome).await?;
        outputs[1].expect(gpu, format!("coefficients, {what}"), coefficient).await
    }
}

/// Values calculated by hand from the definition of D²O. Inputs: the anchors' log-ratios, the negative's
/// log-ratio, alpha and beta. Results: z, loss, the coefficients of an anchor and of the negative.
type Known = (&'static [f64], f64, [f64; 2], [f64; 4]);
const TABLE: [Known; 4] = [
    (&[0.0, 0.0, 0.0], 0.0, [0.1, 0.1], [0.0, LN_2, -0.5 * 0.1 / 3.0, 0.05]),
    (&[0.5, -0.25, 1.25], -2.0, [0.1, 0.1], [0.25, 0.575_939_42, -0.014_594_12, 0.043_782_35]),
    (&[0.5, -0.25, 1.25], -2.0, [1.0, 1.0], [2.5, 0.078_889_73, -0.025_286_06, 0.075_858_18]),
    (&[1.5, -0.5], -3.0, [0.2, 0.1], [0.65, 0.420_055_34, -0.017_149_48, 0.068_597_91]),
];

/// Rounded so that sums of a few values are exact in f32.
fn exact(value: f64) -> f64 {
    (value * 64.0).round() / 64.0
}

async fn table(gpu: &Gpu, _: Depth) -> Outcome {
    for (anchors, negative, [alpha, beta], [z, loss, of_anchor, of_negative]) in TABLE {
        let count = anchors.len();
        let reference: Vec<f64> = values(1, count + 1, 32.0).into_iter().map(exact).collect();
        let ratios = anchors.iter().copied().chain([negative]);
        let groups = Groups {
            sizes: vec![count as u32 + 1],
            tokens: reference.iter().zip(ratios).map(|(r, ratio)| vec![r + ratio, 0.0, 0.0]).collect(),
            weights: vec![vec![1.0; 3]; count + 1],
            reference,
        };
        let mean = anchors.iter().sum::<f64>() / count as f64;
        let outcome = [loss, z, beta * mean, alpha * negative];
        let coefficient: Vec<f64> =
            (0..=count).flat_map(|i| [if i == count { of_negative } else { of_anchor }; 3]).collect();
        let what = format!("anchors {anchors:?} negative {negative} alpha={alpha} beta={beta}");
        let plain = (Terms::default(), 1);
        groups.expect(gpu, Formula::D2o { alpha, beta }, plain, &what, (&outcome, &coefficient)).await?;
    }
    Ok(())
}

/// Random groups; `spread` is the largest log-ratio. With `one_side`, only one sequence of each group is not
/// empty.
async fn group_batch(
    gpu: &Gpu,
    formula: Formula,
    sizes: &[u32],
    (spread, one_side): (f64, bool),
    (terms, divisor): (Terms, usize),
) -> Outcome {
    let sequences = sizes.iter().sum::<u32>();
    let length = |s: u32| if one_side && (s + s / 2).is_multiple_of(2) { 0 } else { 1 + below(90, 6, s) };
    let tokens: Vec<Vec<f64>> = (0..sequences)
        .map(|s| {
            values(10 + s, length(s) as usize, 3.0).iter().map(|v| -exact(v.abs()) - 1.0 / 64.0).collect()
        })
        .collect();
    let moved = values(2, sequences as usize, spread);
    // Every third group's tokens have weights, from none to several.
    let group_of = |s: usize| spans(sizes).0.iter().position(|group| (s as u32) < group[1]).unwrap_or(0);
    let weight = |s: usize, i: usize| match group_of(s) % 3 {
        1 => [1.0, 0.0, 0.25, 3.0][(s + i) % 4],
        _ => 1.0,
    };
    let weights: Vec<Vec<f64>> =
        (0..tokens.len()).map(|s| (0..tokens[s].len()).map(|i| weight(s, i)).collect()).collect();
    let ratio = |((tokens, weights), moved): ((&Vec<f64>, &Vec<f64>), f64)| {
        let sum: f64 = tokens.iter().zip(weights).map(|(logp, weight)| weight * logp).sum();
        if tokens.is_empty() { 0.0 } else { sum - exact(moved) }
    };
    let reference = tokens.iter().zip(&weights).zip(moved).map(ratio).collect();
    let groups = Groups { sizes: sizes.to_vec(), tokens, weights, reference };
    let (outcome, coefficient) = groups.expected(formula, terms, divisor);
    let what = format!("{formula:?} groups {sizes:?} ratios<{spread} {terms:?} divisor={divisor}");
    groups.expect(gpu, formula, (terms, divisor), &what, (&outcome, &coefficient)).await
}

async fn groups(gpu: &Gpu, depth: Depth) -> Outcome {
    let shapes: [&[u32]; 4] = [&[4, 2, 12], &[2], &[3; 67], &[12, 12]];
    let terms = |length_normalize: bool| Terms { length_normalize, ..Terms::default() };
    let scales = [(4.0, false), (16.0, true), (512.0, false)];
    for &sizes in depth.of(&shapes) {
        for (alpha, beta) in [(0.1, 0.1), (0.2, 0.05), (0.3, 0.0)] {
            for (spread, normalize) in scales {
                let formula = Formula::D2o { alpha, beta };
                group_batch(gpu, formula, sizes, (spread, false), (terms(normalize), 4)).await?;
            }
        }
        // A floor that some of the negatives are below.
        let terms = Terms { negative_floor: Some(5.25), ..Terms::default() };
        for formula in [Formula::D2o { alpha: 0.2, beta: 0.1 }, Formula::D2o { alpha: 1.0, beta: 1.0 }] {
            group_batch(gpu, formula, sizes, (16.0, false), (terms, 4)).await?;
        }
    }
    let pairs = [
        Formula::Dpo { beta: 0.1, label_smoothing: 0.0 },
        Formula::Dpo { beta: 0.1, label_smoothing: 0.1 },
        Formula::Ipo { beta: 0.3 },
        Formula::Hinge { beta: 0.1 },
        Formula::Slic { delta: 1.0, sft_weight: 0.5 },
        Formula::Slic { delta: 90.0, sft_weight: 0.5 },
        Formula::Simpo { beta: 2.0, gamma: 1.0 },
        Formula::Orpo { beta: 0.1 },
    ];
    for formula in pairs {
        for (spread, normalize) in scales {
            group_batch(gpu, formula, &[2; 5], (spread, false), (terms(normalize), 5)).await?;
        }
    }
    let kto = Formula::Kto { beta: 0.1, desirable_weight: 1.5, undesirable_weight: 0.75 };
    for (spread, kl) in [(4.0, 0.0), (16.0, 2.5), (512.0, 1.0)] {
        let terms = Terms { kl, ..Terms::default() };
        group_batch(gpu, kto, &[2; 7], (spread, true), (terms, 7)).await?;
    }
    let singles = [
        Formula::Npo { beta: 0.1 },
        Formula::Simnpo { beta: 2.5, gamma: 0.5 },
        Formula::Ga,
        Formula::Ul,
        Formula::Sft,
    ];
    for formula in singles {
        for (spread, normalize) in scales {
            group_batch(gpu, formula, &[1; 66], (spread, false), (terms(normalize), 3)).await?;
        }
    }
    group_batch(gpu, Formula::Sft, &[1, 3, 2], (4.0, false), (terms(false), 3)).await
}

/// Unlikelihood of tokens so likely that 1 - p is 0 in f32, or nearly 0.
async fn likely(gpu: &Gpu, _: Depth) -> Outcome {
    let tokens = [-1e-2, -0.99e-2, -1e-3, -3e-5, -1e-5, -0.9e-5, -1e-7, 0.0, -30.0, -120.0];
    let tokens = tokens.map(|logp: f64| f64::from(logp as f32)).to_vec();
    let weights = vec![vec![1.0; tokens.len()]];
    let groups = Groups { sizes: vec![1], tokens: vec![tokens], weights, reference: vec![0.0] };
    let plain = (Terms::default(), 1);
    let (outcome, coefficient) = groups.expected(Formula::Ul, plain.0, plain.1);
    groups.expect(gpu, Formula::Ul, plain, "likely tokens", (&outcome, &coefficient)).await
}
