//! From logits to a loss and back: token log-probabilities in chunks, sums over sequences, and the preference losses.

use std::f64::consts::LN_2;

use super::bench::{Output, below, floats, values, words};
use super::{Check, Depth, Outcome, check};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::log_prob::{self, Chunk};
use crate::kernels::preference::{self, Batch, Method};
use crate::kernels::{row_scale, sequence_sum};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("log_prob", chunks),
        check!("row_scale", scaled_rows),
        check!("sequence_sum", sums),
        check!("preference_table", table),
        check!("preference_groups", groups),
    ]
}

/// Logits `(rows, vocab)` of every kind: wide, far from zero, and with one that dwarfs the rest.
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
        // A cap that all logits keep below.
        let cap = 2.0 * all.iter().fold(1.0f64, |most, l| most.max(l.abs()));
        let target: Vec<u32> = (0..total as u32).map(|r| below(vocab as u32, 5, r)).collect();
        let sequence: Vec<u32> = (0..total as u32).map(|r| r / 3).collect();
        let coefficient = values(2, total.div_ceil(3), 1.0);
        let expected = reference::log_prob::forward(&all, &target, vocab);
        let dlogits =
            reference::log_prob::backward(&all, &target, &expected.lse, &sequence, &coefficient, vocab);
        let ones = vec![1.0; coefficient.len()];
        let dlogp = reference::log_prob::backward(&all, &target, &expected.lse, &sequence, &ones, vocab);
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
            // Both forms: the one without coefficients from logits of its own.
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

async fn scaled_rows(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&[(5, 67), (1, 1), (64, 8), (17, 31)]) {
        let x = values(1, rows * width, 1.0);
        let sequence: Vec<u32> = (0..rows as u32).map(|r| r / 3).collect();
        let coefficient = values(2, rows.div_ceil(3), 1.0);
        let predict: Vec<u32> = sequence.iter().flat_map(|&s| [u32::MAX, u32::MAX, s, u32::MAX]).collect();
        let out = Output::holding(gpu, &x)?;
        let mut rec = Recorder::new(gpu);
        let tables = (words(gpu, &predict)?, floats(gpu, &coefficient)?);
        row_scale::forward(&mut rec, &tables.0, &tables.1, &out.tensor, (rows, width))?;
        rec.submit();
        let expected = reference::row_scale::forward(&x, &sequence, &coefficient, width);
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

/// Neighbouring [start, end) of these lengths, and the end of the last.
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
    lengths: Vec<u32>,
    policy: Vec<f64>,
    reference: Vec<f64>,
}

impl Groups {
    /// The kernel's outcome `(G, 4)` and coefficients `(S)`, compared with the expected ones.
    async fn expect(
        &self,
        gpu: &Gpu,
        method: Method,
        (normalize, divisor): (bool, f32),
        what: &str,
        (outcome, coefficient): (&[f64], &[f64]),
    ) -> Outcome {
        let (groups, _) = spans(&self.sizes);
        let (rows, _) = spans(&self.lengths);
        let sequences = rows.len();
        // The second half is entropy, which no loss reads.
        let mut policy = self.policy.clone();
        policy.resize(2 * sequences, f64::NAN);
        let outputs = [Output::fresh(gpu, 4 * groups.len())?, Output::fresh(gpu, sequences)?];
        let batch = Batch {
            groups: &words(gpu, groups.as_flattened())?,
            rows: &words(gpu, rows.as_flattened())?,
            policy: &floats(gpu, &policy)?,
            reference: &floats(gpu, &self.reference)?,
            outcome: &outputs[0].tensor,
            coefficient: &outputs[1].tensor,
        };
        let mut rec = Recorder::new(gpu);
        preference::forward(&mut rec, method, batch, (groups.len(), sequences), normalize, divisor)?;
        rec.submit();
        outputs[0].expect(gpu, format!("outcome, {what}"), outcome).await?;
        outputs[1].expect(gpu, format!("coefficients, {what}"), coefficient).await
    }
}

/// Values worked out by hand, from the definition of D²O alone: anchors' log-ratios, the negative's, alpha, beta; z, loss, the
/// coefficients of an anchor and of the negative.
type Known = (&'static [f64], f64, [f32; 2], [f64; 4]);
const TABLE: [Known; 4] = [
    (&[0.0, 0.0, 0.0], 0.0, [0.1, 0.1], [0.0, LN_2, -0.5 * 0.1 / 3.0, 0.05]),
    (&[0.5, -0.25, 1.25], -2.0, [0.1, 0.1], [0.25, 0.575_939_42, -0.014_594_12, 0.043_782_35]),
    (&[0.5, -0.25, 1.25], -2.0, [1.0, 1.0], [2.5, 0.078_889_73, -0.025_286_06, 0.075_858_18]),
    (&[1.5, -0.5], -3.0, [0.2, 0.1], [0.65, 0.420_055_34, -0.017_149_48, 0.068_597_91]),
];

async fn table(gpu: &Gpu, _: Depth) -> Outcome {
    for (anchors, negative, [alpha, beta], [z, loss, of_anchor, of_negative]) in TABLE {
        let count = anchors.len();
        let reference = values(1, count + 1, 32.0);
        let ratios = anchors.iter().copied().chain([negative]);
        let groups = Groups {
            sizes: vec![count as u32 + 1],
            lengths: vec![5; count + 1],
            // Sums of logs are negative, and tens in size; kept exact so that the ratios are.
            policy: reference
                .iter()
                .zip(ratios)
                .map(|(r, ratio)| (r * 64.0).round() / 64.0 + ratio)
                .collect(),
            reference: reference.iter().map(|r| (r * 64.0).round() / 64.0).collect(),
        };
        let mean = anchors.iter().sum::<f64>() / count as f64;
        let outcome = [loss, z, f64::from(beta) * mean, f64::from(alpha) * negative];
        let mut coefficient = vec![of_anchor; count];
        coefficient.push(of_negative);
        let what = format!("anchors {anchors:?} negative {negative} alpha={alpha} beta={beta}");
        groups
            .expect(gpu, Method::D2o { alpha, beta }, (false, 1.0), &what, (&outcome, &coefficient))
            .await?;
    }
    Ok(())
}

/// Random groups; `spread` is the largest log-ratio.
async fn group_batch(
    gpu: &Gpu,
    method: Method,
    sizes: &[u32],
    spread: f64,
    normalize: bool,
    divisor: f32,
) -> Outcome {
    let sequences: usize = sizes.iter().sum::<u32>() as usize;
    let lengths: Vec<u32> = (0..sequences as u32).map(|s| 1 + below(30, 6, s)).collect();
    let reference = values(1, sequences, 32.0);
    let moved = values(2, sequences, spread);
    let policy: Vec<f64> = reference.iter().zip(moved).map(|(r, m)| f64::from((r + m) as f32)).collect();
    let (mut outcome, mut coefficient) = (Vec::new(), Vec::new());
    for [start, end] in spans(sizes).0 {
        let group = start as usize..end as usize;
        let lengths = &lengths[group.clone()];
        let (policy, reference) = (&policy[group.clone()], &reference[group]);
        let one = reference::preference::forward(method.into(), policy, reference, lengths, normalize);
        outcome.extend([one.loss, one.z, one.rewards[0], one.rewards[1]]);
        coefficient.extend(one.coefficients.iter().map(|c| c / f64::from(divisor)));
    }
    let what = format!("{method:?} groups {sizes:?} ratios<{spread} normalize={normalize} divisor={divisor}");
    let groups = Groups { sizes: sizes.to_vec(), lengths, policy, reference };
    groups.expect(gpu, method, (normalize, divisor), &what, (&outcome, &coefficient)).await
}

async fn groups(gpu: &Gpu, depth: Depth) -> Outcome {
    let d2o: [&[u32]; 4] = [&[4, 2, 12], &[2], &[3; 67], &[12, 12]];
    for &sizes in depth.of(&d2o) {
        for (alpha, beta) in [(0.1, 0.1), (0.2, 0.05), (0.3, 0.0)] {
            for (spread, normalize) in [(4.0, false), (16.0, true), (512.0, false)] {
                group_batch(gpu, Method::D2o { alpha, beta }, sizes, spread, normalize, 4.0).await?;
            }
        }
    }
    for label_smoothing in [0.0, 0.1] {
        for (spread, normalize) in [(4.0, false), (16.0, true), (512.0, false)] {
            let method = Method::Dpo { beta: 0.1, label_smoothing };
            group_batch(gpu, method, &[2; 5], spread, normalize, 5.0).await?;
        }
    }
    let sft: [&[u32]; 3] = [&[1, 3, 2], &[1], &[1; 66]];
    for &sizes in depth.of(&sft) {
        group_batch(gpu, Method::Sft, sizes, 4.0, false, 3.0).await?;
    }
    Ok(())
}
