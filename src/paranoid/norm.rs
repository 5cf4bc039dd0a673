//! Norms of rows, and the sums over the rows that give the gradients of the norms' weights.

use super::{Output, UNIT, Witnessed, of_sum, strip};
use crate::kernels::{column_sum, head_norm, layer_norm, rms_norm};
use crate::reference;

/// The relative tolerance of a norm, whose sums have the length of a row.
const SHARE: f64 = 1e-5;

fn shifted(weights: Vec<f64>, shift: f32) -> Vec<f64> {
    weights.into_iter().map(|w| w + f64::from(shift)).collect()
}

/// Bindings: x, w, y, rstd, and the residual if there is one.
pub(super) fn rms_norm(seen: &Witnessed) -> Vec<Output> {
    let p: rms_norm::Params = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let w = shifted(seen.bound[1].range(0, width), p.shift);
    let (mut of_y, mut of_rstd) = (Output::first(2, rows * width), Output::first(3, rows));
    for row in seen.pick_rows(rows, width) {
        let x = seen.bound[0].range(row * width, width);
        let (y, rstd) = reference::rms_norm::forward(&x, &w, width, f64::from(p.eps));
        let residual = match seen.has("RESIDUAL") {
            true => seen.bound[4].range(row * width, width),
            false => vec![0.0; width],
        };
        let sum: Vec<f64> = y.iter().zip(&residual).map(|(y, r)| y + r).collect();
        of_y.row(row * width, &sum, |i| SHARE * (y[i].abs() + residual[i].abs()));
        of_rstd.near(row, rstd[0], 0.0);
    }
    vec![of_y, of_rstd]
}

/// Bindings: x, w, rstd, dy, dx, and y with AGAIN.
pub(super) fn rms_norm_backward(seen: &Witnessed) -> Vec<Output> {
    let p: rms_norm::BackwardParams = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let w = shifted(seen.bound[1].range(0, width), p.shift);
    let mut output = Output::first(4, rows * width);
    let mut again = seen.has("AGAIN").then(|| Output::first(5, rows * width));
    for row in seen.pick_rows(rows, width) {
        let [x, dy, before] = [0, 3, 4].map(|binding| seen.bound[binding].range(row * width, width));
        let rstd = seen.bound[2].at(row);
        if let Some(again) = &mut again {
            let y: Vec<f64> = x.iter().zip(&w).map(|(x, w)| x * rstd * w).collect();
            again.row(row * width, &y, |i| SHARE * y[i].abs());
        }
        let slack = rms_slack(&x, &w, rstd, &dy);
        let (mut dx, _) = reference::rms_norm::backward(&x, &w, &[rstd], &dy, width);
        if p.accumulate == 1 {
            dx.iter_mut().zip(&before).for_each(|(dx, before)| *dx += before);
        }
        // A value that is overwritten may be anything.
        let earlier = |i: usize| if p.accumulate == 1 { before[i].abs() } else { 0.0 };
        output.row(row * width, &dx, |i| slack[i] + 4.0 * UNIT * earlier(i));
    }
    again.into_iter().chain([output]).collect()
}

/// The tolerances of dx, from the sizes of its two terms, which may cancel.
fn rms_slack(x: &[f64], w: &[f64], rstd: f64, dy: &[f64]) -> Vec<f64> {
    let each = |i: usize| (x[i] * w[i] * dy[i]).abs();
    let mean = (0..x.len()).map(each).sum::<f64>() / x.len() as f64;
    let one = |i: usize| SHARE * rstd * ((w[i] * dy[i]).abs() + x[i].abs() * rstd * rstd * mean);
    (0..x.len()).map(one).collect()
}

/// Bindings: x, w, b, y, stats.
pub(super) fn layer_norm(seen: &Witnessed) -> Vec<Output> {
    let p: layer_norm::Params = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let [w, b] = [1, 2].map(|binding| seen.bound[binding].range(0, width));
    let (mut of_y, mut of_stats) = (Output::first(3, rows * width), Output::first(4, 2 * rows));
    for row in seen.pick_rows(rows, width) {
        let x = seen.bound[0].range(row * width, width);
        let (y, stats) = reference::layer_norm::forward(&x, &w, &b, width, f64::from(p.eps));
        let (rstd, mean) = (stats[0], stats[1]);
        let size = x.iter().map(|x| x.abs()).sum::<f64>() / width as f64;
        of_y.row(row * width, &y, |i| SHARE * ((x[i].abs() + size) * rstd * w[i].abs() + b[i].abs()));
        of_stats.near(row, rstd, SHARE * size * rstd * rstd);
        of_stats.near(rows + row, mean, SHARE * size);
    }
    vec![of_y, of_stats]
}

/// Bindings: x, w, stats, dy, dx, and y and b with AGAIN.
pub(super) fn layer_norm_backward(seen: &Witnessed) -> Vec<Output> {
    let p: layer_norm::BackwardParams = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let w = seen.bound[1].range(0, width);
    let mut output = Output::first(4, rows * width);
    let mut again =
        seen.has("AGAIN").then(|| (Output::first(5, rows * width), seen.bound[6].range(0, width)));
    for row in seen.pick_rows(rows, width) {
        let [x, dy, before] = [0, 3, 4].map(|binding| seen.bound[binding].range(row * width, width));
        let [rstd, mean] = [row, rows + row].map(|i| seen.bound[2].at(i));
        let [mut dx, ..] = reference::layer_norm::backward(&x, &w, &[rstd, mean], &dy, width);
        if let Some((again, b)) = &mut again {
            let y: Vec<f64> = (0..width).map(|i| (x[i] - mean) * rstd * w[i] + b[i]).collect();
            let size = |i: usize| (x[i].abs() + mean.abs()) * rstd * w[i].abs() + b[i].abs();
            again.row(row * width, &y, |i| SHARE * size(i));
        }
        let n: Vec<f64> = x.iter().map(|x| (x.abs() + mean.abs()) * rstd).collect();
        let of = |i: usize| (w[i] * dy[i]).abs();
        let plain = (0..width).map(of).sum::<f64>() / width as f64;
        let along = (0..width).map(|i| n[i] * of(i)).sum::<f64>() / width as f64;
        if p.accumulate == 1 {
            dx.iter_mut().zip(&before).for_each(|(dx, before)| *dx += before);
        }
        // A value that is overwritten may be anything.
        let earlier = |i: usize| if p.accumulate == 1 { before[i].abs() } else { 0.0 };
        let slack = |i: usize| SHARE * rstd * (of(i) + plain + n[i] * along);
        output.row(row * width, &dx, |i| slack(i) + 4.0 * UNIT * earlier(i));
    }
    again.map(|(again, _)| again).into_iter().chain([output]).collect()
}

/// The norms of a token's queries and keys. The bindings 0 and 1 are their weights.
struct Token {
    p: head_norm::Params,
    heads: [usize; 2],
    weights: [Vec<f64>; 2],
}

impl Token {
    fn of(seen: &Witnessed) -> Self {
        let p: head_norm::Params = seen.params();
        let weights = [0, 1].map(|binding| shifted(seen.bound[binding].range(0, p.width as usize), p.shift));
        Self { heads: [p.heads as usize, p.kv_heads as usize], weights, p }
    }

    fn weights(&self) -> [&[f64]; 2] {
        self.weights.each_ref().map(Vec::as_slice)
    }

    /// The total number of query and key heads, and of their elements.
    fn sizes(&self) -> (usize, usize) {
        let all = self.heads[0] + self.heads[1];
        (all, all * self.p.width as usize)
    }

    fn at(&self, t: usize) -> usize {
        (self.p.at + t as u32 * self.p.stride) as usize
    }

    fn written(&self) -> Vec<std::ops::Range<usize>> {
        strip(self.p.at as usize, self.p.stride as usize, self.p.tokens as usize, self.sizes().1)
    }
}

/// Bindings: both weights, x, raw, rstd.
pub(super) fn head_norm(seen: &Witnessed) -> Vec<Output> {
    let token = Token::of(seen);
    let ((all, size), width, tokens) = (token.sizes(), token.p.width as usize, token.p.tokens as usize);
    let mut of_y = Output::new(2, token.written());
    let (mut of_raw, mut of_rstd) = (Output::first(3, tokens * size), Output::first(4, tokens * all));
    for t in seen.pick_rows(tokens, size) {
        let x = seen.bound[2].range(token.at(t), size);
        let eps = f64::from(token.p.eps);
        let (y, rstd) = reference::head_norm::forward(&x, token.weights(), token.heads, width, eps);
        of_y.row(token.at(t), &y, |i| SHARE * y[i].abs());
        of_raw.row(t * size, &x, |_| 0.0);
        of_rstd.row(t * all, &rstd, |_| 0.0);
    }
    vec![of_y, of_raw, of_rstd]
}

/// Bindings: both weights, raw, rstd, dx.
pub(super) fn head_norm_backward(seen: &Witnessed) -> Vec<Output> {
    let token = Token::of(seen);
    let ((all, size), width, tokens) = (token.sizes(), token.p.width as usize, token.p.tokens as usize);
    let mut output = Output::new(4, token.written());
    for t in seen.pick_rows(tokens, size) {
        let raw = seen.bound[2].range(t * size, size);
        let rstd = seen.bound[3].range(t * all, all);
        let dy = seen.bound[4].range(token.at(t), size);
        let (dx, _) = reference::head_norm::backward(&raw, token.weights(), &rstd, &dy, token.heads, width);
        let slacks: Vec<f64> = (0..all)
            .flat_map(|head| {
                let own = head * width..(head + 1) * width;
                let w = &token.weights[usize::from(head >= token.heads[0])];
                rms_slack(&raw[own.clone()], w, rstd[head], &dy[own])
            })
            .collect();
        output.row(token.at(t), &dx, |i| slacks[i]);
    }
    vec![output]
}

/// Bindings: a, out, and with SCALED also b, s.
pub(super) fn column_sum(seen: &Witnessed) -> Vec<Output> {
    let p: column_sum::Params = seen.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let [at, stride, b_at, b_stride, s_at, s_stride] =
        [p.at, p.stride, p.b_at, p.b_stride, p.s_at, p.s_stride].map(|size| size as usize);
    let mut output = Output::first(1, width);
    for c in seen.pick_rows(width, rows) {
        let a = seen.bound[0].strided(at + c, stride, rows);
        let before = seen.bound[1].at(c);
        let factors = seen.has("SCALED").then(|| {
            let mut b = seen.bound[2].strided(b_at + c, b_stride, rows);
            let mut sizes: Vec<f64> = b.iter().map(|b| b.abs()).collect();
            if seen.has("CENTERED") {
                for (row, (b, size)) in b.iter_mut().zip(&mut sizes).enumerate() {
                    let mean = seen.bound[3].at(rows + row);
                    (*b, *size) = (*b - mean, *size + mean.abs());
                }
            }
            (b, seen.bound[3].strided(s_at, s_stride, rows), sizes)
        });
        let (b, s) = factors.as_ref().map(|(b, s, _)| (&b[..], &s[..])).unzip();
        let sum = reference::column_sum::forward(&a, b, s, 1, Some(&[before]))[0];
        let factor = |row: usize| factors.as_ref().map_or(1.0, |(_, s, sizes)| sizes[row] * s[row].abs());
        let size: f64 = a.iter().enumerate().map(|(row, a)| a.abs() * factor(row)).sum();
        let share = of_sum(rows);
        output.near(c, sum, share * (size + before.abs()));
    }
    vec![output]
}
