//! Layer normalisation (Ba et al. 2016).

use super::column_sum;

/// x (T, width), w and b (width) -> y (T, width) = (x − mean) · rstd · w + b, and stats (2, T): rstd =
/// 1/sqrt(variance + eps), mean.
pub fn forward(x: &[f64], w: &[f64], b: &[f64], width: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let mean: Vec<f64> = x.chunks_exact(width).map(|row| row.iter().sum::<f64>() / width as f64).collect();
    let variance =
        |(row, mean): (&[f64], &f64)| row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
    let rstd: Vec<f64> =
        x.chunks_exact(width).zip(&mean).map(|of| 1.0 / (variance(of) + eps).sqrt()).collect();
    let normed = normed(x, &rstd, &mean, width);
    let y = normed.iter().enumerate().map(|(i, n)| n * w[i % width] + b[i % width]).collect();
    (y, [rstd, mean].concat())
}

fn normed(x: &[f64], rstd: &[f64], mean: &[f64], width: usize) -> Vec<f64> {
    x.iter().enumerate().map(|(i, v)| (v - mean[i / width]) * rstd[i / width]).collect()
}

/// dx (T, width) = rstd · (w·dy − mean(w·dy) − n · mean(n·w·dy)) with n the normed x; dw = Σ_t n · dy, db =
/// Σ_t dy (width).
pub fn backward(x: &[f64], w: &[f64], stats: &[f64], dy: &[f64], width: usize) -> [Vec<f64>; 3] {
    let rows = x.len() / width;
    let (rstd, mean) = stats.split_at(rows);
    let n = normed(x, rstd, mean, width);
    let mut dx = vec![0.0; x.len()];
    for (t, r) in rstd.iter().enumerate() {
        let row = t * width..(t + 1) * width;
        let of = |i: usize| w[i % width] * dy[i];
        let plain = row.clone().map(of).sum::<f64>() / width as f64;
        let along = row.clone().map(|i| n[i] * of(i)).sum::<f64>() / width as f64;
        row.for_each(|i| dx[i] = r * (of(i) - plain - n[i] * along));
    }
    let ones = vec![1.0; rows];
    let dw = column_sum::forward(dy, Some(&n), Some(&ones), width, None);
    [dx, dw, column_sum::forward(dy, None, None, width, None)]
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn by_hand() {
        let (y, stats) = forward(&[1.0, 3.0, 5.0, 5.0], &[1.0, 2.0], &[0.5, 0.0], 2, 0.0);
        assert_eq!((&y[..2], stats[0], stats[2]), (&[-0.5, 2.0][..], 1.0, 2.0));
    }

    #[test]
    fn gradients() {
        let (x, w, b, c) = (values(1, 21), values(2, 7), values(4, 7), values(3, 21));
        let (_, stats) = forward(&x, &w, &b, 7, 0.1);
        let [dx, dw, db] = backward(&x, &w, &stats, &c, 7);
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &forward(x, &w, &b, 7, 0.1).0));
        finite::check("dw", &w, &dw, |w| finite::dot(&c, &forward(&x, w, &b, 7, 0.1).0));
        finite::check("db", &b, &db, |b| finite::dot(&c, &forward(&x, &w, b, 7, 0.1).0));
    }
}
