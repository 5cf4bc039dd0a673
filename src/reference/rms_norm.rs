//! Root-mean-square normalisation (Zhang & Sennrich 2019), as in Llama: no mean is subtracted, no bias added.

use super::column_sum;

/// x (T, width), w (width) -> y (T, width) = x · rstd · w, and rstd (T) = 1/sqrt(mean(x²) + eps).
pub fn forward(x: &[f64], w: &[f64], width: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(w.len(), width);
    let rstd: Vec<f64> = x
        .chunks_exact(width)
        .map(|row| 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + eps).sqrt())
        .collect();
    let y = x.iter().enumerate().map(|(i, v)| v * rstd[i / width] * w[i % width]).collect();
    (y, rstd)
}

/// dx (T, width) = rstd · (w·dy − x · rstd² · mean_j(x·w·dy)) and dw (width) = Σ_t x · dy · rstd.
pub fn backward(x: &[f64], w: &[f64], rstd: &[f64], dy: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let mut dx = vec![0.0; x.len()];
    for (t, r) in rstd.iter().enumerate() {
        let row = t * width..(t + 1) * width;
        let mean = row.clone().map(|i| x[i] * w[i % width] * dy[i]).sum::<f64>() / width as f64;
        for i in row {
            dx[i] = r * (w[i % width] * dy[i] - x[i] * r * r * mean);
        }
    }
    (dx, column_sum::forward(dy, Some(x), Some(rstd), width, None))
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn by_hand() {
        let (y, rstd) = forward(&[3.0, 4.0, 1.0, 7.0], &[1.0, 2.0], 2, 0.0);
        let expected = [3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt(), 0.2, 2.8];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{y:?}");
        assert!((rstd[1] - 0.2).abs() < 1e-15);
    }

    #[test]
    fn gradients() {
        let (x, w, c) = (values(1, 21), values(2, 7), values(3, 21));
        let (_, rstd) = forward(&x, &w, 7, 0.1);
        let (dx, dw) = backward(&x, &w, &rstd, &c, 7);
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &forward(x, &w, 7, 0.1).0));
        finite::check("dw", &w, &dw, |w| finite::dot(&c, &forward(&x, w, 7, 0.1).0));
    }
}
