//! RMSNorm of each head of the queries and keys: [`super::rms_norm`] with each head as a row, and one weight
//! for queries and one for keys.

use super::rms_norm;

/// x (T, H + G, width) -> y, laid out as x, and rstd (T, H + G). The first H heads of a token, the queries,
/// use the first of `weights`; the G keys use the second.
pub fn forward(
    x: &[f64],
    weights: [&[f64]; 2],
    heads: [usize; 2],
    width: usize,
    eps: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    for token in x.chunks_exact((heads[0] + heads[1]) * width) {
        let (q, k) = token.split_at(heads[0] * width);
        for (part, w) in [q, k].into_iter().zip(weights) {
            let (normed, r) = rms_norm::forward(part, w, width, eps);
            y.extend(normed);
            rstd.extend(r);
        }
    }
    (y, rstd)
}

/// dx, laid out as x, and the gradients of both weights (width).
pub fn backward(
    x: &[f64],
    weights: [&[f64]; 2],
    rstd: &[f64],
    dy: &[f64],
    heads: [usize; 2],
    width: usize,
) -> (Vec<f64>, [Vec<f64>; 2]) {
    let all = heads[0] + heads[1];
    let (mut dx, mut dw) = (Vec::new(), [vec![0.0; width], vec![0.0; width]]);
    for (t, token) in x.chunks_exact(all * width).enumerate() {
        for (which, own) in [0..heads[0], heads[0]..all].into_iter().enumerate() {
            let of = |values: &[f64], size: usize| values[own.start * size..own.end * size].to_vec();
            let (r, d) = (&rstd[t * all..][..all], &dy[t * all * width..][..all * width]);
            let (dpart, dweight) =
                rms_norm::backward(&of(token, width), weights[which], &of(r, 1), &of(d, width), width);
            dx.extend(dpart);
            dw[which].iter_mut().zip(dweight).for_each(|(sum, d)| *sum += d);
        }
    }
    (dx, dw)
}

#[test]
fn gradients() {
    use super::finite;
    use crate::rng::values;
    let (x, q, k, c) = (values(1, 24), values(2, 4), values(3, 4), values(4, 24));
    let loss = |x: &[f64], q: &[f64], k: &[f64]| finite::dot(&c, &forward(x, [q, k], [2, 1], 4, 0.1).0);
    let (_, rstd) = forward(&x, [&q, &k], [2, 1], 4, 0.1);
    let (dx, [dq, dk]) = backward(&x, [&q, &k], &rstd, &c, [2, 1], 4);
    finite::check("dx", &x, &dx, |x| loss(x, &q, &k));
    finite::check("dq", &q, &dq, |q| loss(&x, q, &k));
    finite::check("dk", &k, &dk, |k| loss(&x, &q, k));
}
