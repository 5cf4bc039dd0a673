//! Kernels that compute each element, or pair of elements, independently.

use super::{MOST, Output, UNIT, Witnessed};
use crate::kernels::{activation, dropout, ema, fma_peak, rope, row_scale, soft_cap};
use crate::reference;
use crate::reference::activation::Function;

/// The activation function, a token's gate, and its up if there is one (F elements each).
fn gate_and_up(seen: &Witnessed, row: usize, inner: usize) -> (Function, Vec<f64>, Option<Vec<f64>>) {
    let function = match () {
        () if seen.has("SILU") => Function::Silu,
        () if seen.has("GELU") => Function::Gelu,
        () => Function::GeluTanh,
    };
    if !seen.has("GATED") {
        return (function, seen.bound[0].range(row * inner, inner), None);
    }
    let [gate, up] = [0, inner].map(|from| seen.bound[0].range(2 * row * inner + from, inner));
    (function, gate, Some(up))
}

/// Bindings: x, act.
pub(super) fn activation(seen: &Witnessed) -> Vec<Output> {
    vec![active(seen, 1)]
}

/// The activation, in the tensor `binding`.
fn active(seen: &Witnessed, binding: usize) -> Output {
    let p: activation::Params = seen.params();
    let (rows, inner) = (p.rows as usize, 4 * p.vectors as usize);
    let mut output = Output::first(binding, rows * inner);
    for row in seen.pick_rows(rows, inner) {
        let (function, gate, up) = gate_and_up(seen, row, inner);
        let act = reference::activation::forward(function, &gate, up.as_deref());
        let up = |i: usize| up.as_ref().map_or(1.0, |up| up[i].abs());
        output.row(row * inner, &act, |i| 32.0 * UNIT * gate[i].abs() * up(i));
    }
    output
}

/// Bindings: x, dact, dx, act.
pub(super) fn activation_backward(seen: &Witnessed) -> Vec<Output> {
    let p: activation::Params = seen.params();
    let (rows, inner) = (p.rows as usize, 4 * p.vectors as usize);
    let width = if seen.has("GATED") { 2 * inner } else { inner };
    let mut output = Output::first(2, rows * width);
    for row in seen.pick_rows(rows, width) {
        let (function, gate, up) = gate_and_up(seen, row, inner);
        let dact = seen.bound[1].range(row * inner, inner);
        let (dgate, dup) = reference::activation::backward(function, &gate, up.as_deref(), &dact);
        let factor = |i: usize| dact[i].abs() * up.as_ref().map_or(1.0, |up| up[i].abs());
        output.row(row * width, &dgate, |i| 32.0 * UNIT * factor(i) * (1.0 + gate[i].abs()));
        if up.is_some() {
            output.row(row * width + inner, &dup, |i| 32.0 * UNIT * (dact[i] * gate[i]).abs());
        }
    }
    vec![output, active(seen, 3)]
}

/// Bindings: tokens, table, x.
pub(super) fn rope(seen: &Witnessed) -> Vec<Output> {
    let p: rope::Params = seen.params();
    let [tokens, heads, half, at, stride, head_stride] =
        [p.tokens, p.heads, p.half, p.at, p.stride, p.head_stride].map(|size| size as usize);
    let place = |t: usize, head: usize| at + t * stride + head * head_stride;
    let all = (0..tokens).flat_map(|t| (0..heads).map(move |head| (t, head)));
    let written = all.map(|(t, head)| place(t, head)..place(t, head) + 2 * half).collect();
    let mut output = Output::new(2, written);
    for t in seen.pick_rows(tokens, 2 * half * heads) {
        let position = seen.bound[0].four(t)[1] as usize;
        let table = seen.bound[1].range(position * 2 * half, 2 * half);
        for head in 0..heads {
            let x = seen.bound[2].range(place(t, head), 2 * half);
            let sizes = (2 * half, 2 * half);
            let turned = reference::rope::forward(&x, &table, &[0], sizes, f64::from(p.sign));
            let size = |i: usize| x[i % half].abs() + x[half + i % half].abs();
            output.row(place(t, head), &turned, |i| 8.0 * UNIT * size(i));
        }
    }
    vec![output]
}

/// The elements of a flat tensor that are compared, in runs of neighbours.
fn runs(seen: &Witnessed, count: usize) -> impl Iterator<Item = usize> {
    const RUN: usize = 256;
    let first = seen.pick(count.div_ceil(RUN), MOST / RUN);
    first.into_iter().flat_map(move |run| run * RUN..count.min((run + 1) * RUN))
}

/// Bindings: x, y.
pub(super) fn dropout(seen: &Witnessed) -> Vec<Output> {
    let dropout::Params { count, stream, step, seed, p, .. } = seen.params();
    let params = reference::dropout::Params { p, stream, step, seed };
    let x = seen.bound[0].range(0, count as usize);
    let mask = reference::dropout::forward(params, &x);
    let mut output = Output::first(1, count as usize);
    for i in runs(seen, count as usize) {
        let before = if seen.has("ACCUMULATE") { seen.bound[1].at(i) } else { 0.0 };
        output.near(i, before + mask[i], 4.0 * UNIT * (before.abs() + mask[i].abs()));
    }
    vec![output]
}

/// Bindings: coefficient, x.
pub(super) fn row_scale(seen: &Witnessed) -> Vec<Output> {
    let p: row_scale::Params = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let mut output = Output::first(1, rows * width);
    for row in seen.pick_rows(rows, width) {
        let x = seen.bound[1].range(row * width, width);
        let scaled = reference::row_scale::forward(&x, &[seen.bound[0].at(row)], width);
        output.row(row * width, &scaled, |_| 0.0);
    }
    vec![output]
}

/// Bindings: x.
pub(super) fn soft_cap(seen: &Witnessed) -> Vec<Output> {
    let p: soft_cap::Params = seen.params();
    let mut output = Output::first(0, p.count as usize);
    for i in runs(seen, p.count as usize) {
        let x = seen.bound[0].at(i);
        let capped = reference::soft_cap::forward(&[x], f64::from(p.cap))[0];
        // The device computes tanh of small numbers as a difference of numbers near 1.
        output.near(i, capped, 8.0 * UNIT * f64::from(p.cap));
    }
    vec![output]
}

/// Bindings: value, average.
pub(super) fn ema(seen: &Witnessed) -> Vec<Output> {
    let p: ema::Params = seen.params();
    let count = seen.bound[1].len.min(4 * p.vectors as usize);
    let mut output = Output::first(1, count);
    for i in runs(seen, count) {
        let (value, average) = (seen.bound[0].at(i), seen.bound[1].at(i));
        let moved = reference::ema::forward(&[average], &[value], f64::from(p.decay))[0];
        output.within(i, moved, 4.0 * UNIT * (value.abs() + average.abs()));
    }
    vec![output]
}

/// Bindings: out.
pub(super) fn fma_peak(seen: &Witnessed) -> Vec<Output> {
    let p: fma_peak::Params = seen.params();
    let sum = reference::fma_peak::forward(p.rounds, f64::from(p.a), f64::from(p.b));
    let mut output = Output::first(0, p.count as usize);
    runs(seen, p.count as usize).for_each(|i| output.near(i, sum, 0.0));
    vec![output]
}
