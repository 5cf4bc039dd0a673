//! The gradient norm, and AdamW.

use super::{Compared, Expected, MOST, Output, UNIT, Witnessed, of_sum};
use crate::kernels::sum_squares::{self, PARTIALS};
use crate::kernels::{adamw, adamw_8bit};
use crate::reference;

/// Bindings: g, partials.
pub(super) fn sum_squares(seen: &Witnessed) -> Vec<Output> {
    let p: sum_squares::Params = seen.params();
    let (count, first) = (p.count as usize, p.first as usize);
    let mut output = Output::part(1, first..first + PARTIALS);
    for i in seen.pick(PARTIALS, 64) {
        let own = (count.saturating_sub(i)).div_ceil(PARTIALS);
        let sum = reference::sum_squares::forward(&seen.bound[0].strided(i, PARTIALS, own));
        output.near(first + i, sum, of_sum(own) * sum);
    }
    vec![output]
}

/// Bindings: partials, result.
pub(super) fn clip_scale(seen: &Witnessed) -> Vec<Output> {
    let p: sum_squares::ClipParams = seen.params();
    let sum: f64 = seen.bound[0].range(0, p.partials as usize).iter().sum();
    let mut output = Output::first(1, 2);
    output.near(0, sum.sqrt(), 0.0);
    output.near(1, reference::sum_squares::clip_scale(sum, f64::from(p.max_norm)), 0.0);
    vec![output]
}

/// The reference's parameters, from a step's constants. The step number t is derived from root = √(1 − β2^t),
/// and the learning rate from t.
fn params([shrink, beta1, beta2, step, root, eps]: [f32; 6], scale: f64) -> reference::adamw::Params {
    let [shrink, beta1, beta2, step, root, eps] = [shrink, beta1, beta2, step, root, eps].map(f64::from);
    let left = (1.0 - root * root).max(0.0);
    // Late in a run 1 − root² is 0 in f32, and t no longer matters.
    let t = if left > 0.0 && beta2 > 0.0 { (left.ln() / beta2.ln()).round().clamp(1.0, 1e7) } else { 1e7 };
    let t = if beta2 == 0.0 { 1.0 } else { t };
    let lr = step * (1.0 - beta1.powf(t));
    let weight_decay = if lr == 0.0 { 0.0 } else { (1.0 - shrink) / lr };
    reference::adamw::Params { lr, beta1, beta2, eps, weight_decay, step: t as u32, scale }
}

/// The tolerance of a weight, from its values before and after the step and from the moments. The two terms
/// of the first moment may cancel.
fn weight_slack(p: reference::adamw::Params, [before, after]: [f64; 2], of_m: f64, v: f64) -> f64 {
    let t = f64::from(p.step);
    let (correct1, correct2) = (1.0 - p.beta1.powf(t), (1.0 - p.beta2.powf(t)).sqrt());
    let cancelled = p.lr / correct1 * 4.0 * UNIT * of_m / (v.sqrt() / correct2 + p.eps);
    4.0 * UNIT * before.abs() + 1e-4 * (after - before).abs() + cancelled
}

/// Bindings: clip, g, w, m, v.
pub(super) fn adamw(seen: &Witnessed) -> Vec<Output> {
    let p: adamw::Params = seen.params();
    let constants = [p.shrink, p.beta1, p.beta2, p.step, p.root, p.eps];
    let params = params(constants, seen.bound[0].at(1));
    let count = seen.bound[2].len.min(4 * p.vectors as usize);
    if params.scale < 0.0 {
        // The step is skipped: nothing may change.
        return [2, 3, 4].map(|binding| Output::new(binding, Vec::new())).into();
    }
    let mut outputs = [2, 3, 4].map(|binding| Output::first(binding, count));
    for i in seen.pick(count, MOST) {
        let [g, before, m, v] = [1, 2, 3, 4].map(|binding| seen.bound[binding].at(i));
        let (mut w, mut moments) = ([before], [[m], [v]]);
        let [of_m, of_v] = &mut moments;
        reference::adamw::step(params, &mut w, &[g], of_m, of_v);
        let size = m.abs() + (g * params.scale).abs();
        outputs[0].within(i, w[0], weight_slack(params, [before, w[0]], size, moments[1][0]));
        outputs[1].near(i, moments[0][0], 4.0 * UNIT * size);
        outputs[2].near(i, moments[1][0], 0.0);
    }
    outputs.into()
}

/// Bindings: clip, g, table, w, moments. Each block is checked separately: AdamW on its decoded moments, then
/// the nearest codes.
pub(super) fn adamw_8bit(seen: &Witnessed) -> Vec<Output> {
    let p: adamw_8bit::Params = seen.params();
    let constants = [p.shrink, p.beta1, p.beta2, p.step, p.root, p.eps];
    let params = params(constants, seen.bound[0].at(1));
    let (block, vectors) = (adamw_8bit::BLOCK, p.vectors as usize);
    let count = seen.bound[3].len.min(4 * vectors);
    let table: Vec<f32> = seen.bound[2].range(0, 512).into_iter().map(|number| number as f32).collect();
    let state = &seen.bound[4];
    if params.scale < 0.0 {
        return [3, 4].map(|binding| Output::new(binding, Vec::new())).into();
    }
    let (mut of_w, mut of_state) = (Output::first(3, count), Output::first(4, state.len));
    let after = state.after.as_deref().unwrap_or_default();
    for b in seen.pick(p.blocks as usize, 48) {
        // A step works on whole vec4s: elements after the last parameter are 0 and stay 0.
        let size = block.min(4 * vectors - b * block);
        let own = [0, 1].map(|which| which * vectors + b * block / 4);
        let scales = 2 * vectors + 2 * b;
        let words: Vec<usize> =
            own.iter().flat_map(|&at| at..at + size / 4).chain(scales..scales + 2).collect();
        let read = |word: &dyn Fn(usize) -> u32| {
            let words: Vec<u32> = words.iter().map(|&i| word(i)).collect();
            reference::adamw_8bit::moments(&words, &table, size)
        };
        let [mut m, mut v] = read(&|i| state.word(i));
        let found = read(&|i| super::word(after, i));
        let filled = |binding: usize| -> Vec<f64> {
            let held = size.min(seen.bound[binding].len.saturating_sub(b * block));
            let mut values = seen.bound[binding].range(b * block, held);
            values.resize(size, 0.0);
            values
        };
        let (before, g) = (filled(3), filled(1));
        let mut w = before.clone();
        let sizes: Vec<f64> = m.iter().zip(&g).map(|(m, g)| m.abs() + (g * params.scale).abs()).collect();
        reference::adamw::step(params, &mut w, &g, &mut m, &mut v);
        for i in 0..size.min(count - b * block) {
            of_w.within(b * block + i, w[i], weight_slack(params, [before[i], w[i]], sizes[i], v[i]));
        }
        for (which, (found, expected)) in found.iter().zip([&m, &v]).enumerate() {
            let table = &table[256 * which..][..256];
            let rounding = reference::adamw_8bit::rounding(expected, table);
            let most = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let slack = 1.001 * rounding[i] + 1e-30;
                let expected = Expected::Read { found: *found, expected: *expected, slack };
                of_state.compared.push(Compared { at: own[which] + i / 4, expected });
            }
            of_state.near(scales + which, most, 1e-30);
        }
    }
    vec![of_w, of_state]
}
