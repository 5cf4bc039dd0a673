//! Rotary position embedding (Su et al. 2021) in the `rotate_half` layout of Hugging Face's Llama.

/// The table (positions, dim/2) of (cos, sin) pairs for angle = `position · inv_freq[j]`, where dim is the
/// number of rotated elements of a head. Pairs are side by side: cos at 2·(position · dim/2 + j), sin right
/// after it.
pub fn table(positions: usize, inv_freq: &[f64]) -> Vec<f64> {
    (0..positions)
        .flat_map(|p| inv_freq.iter().map(move |f| p as f64 * f))
        .flat_map(|angle| [angle.cos(), angle.sin()])
        .collect()
}

/// `inv_freq[j] = theta^(−2j / head_dim)`, the unscaled frequencies.
pub fn inv_freq(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|j| theta.powf(-((2 * j) as f64) / head_dim as f64)).collect()
}

/// Rotates the first `dim` elements of each head of x (T, heads · head_dim): with h = dim/2, (x_j, x_{j+h})
/// -> (x_j·c − x_{j+h}·s, x_{j+h}·c + x_j·s).
///
/// `positions` (T) selects the table's row for each token. `sign` is +1 for the forward and −1 for the
/// backward, which rotates in the opposite direction.
pub fn forward(
    x: &[f64],
    table: &[f64],
    positions: &[u32],
    (head_dim, dim): (usize, usize),
    sign: f64,
) -> Vec<f64> {
    let half = dim / 2;
    let row = x.len() / positions.len().max(1);
    let mut out = x.to_vec();
    for (t, &position) in positions.iter().enumerate() {
        for start in (t * row..(t + 1) * row).step_by(head_dim) {
            for j in 0..half {
                let at = 2 * (position as usize * half + j);
                let (c, s) = (table[at], sign * table[at + 1]);
                let (a, b) = (x[start + j], x[start + j + half]);
                out[start + j] = a * c - b * s;
                out[start + j + half] = b * c + a * s;
            }
        }
    }
    out
}

/// dx from dy: the inverse rotation.
pub fn backward(dy: &[f64], table: &[f64], positions: &[u32], sizes: (usize, usize)) -> Vec<f64> {
    forward(dy, table, positions, sizes, -1.0)
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn depends_on_the_distance_alone() {
        let table = table(12, &inv_freq(6, 100.0));
        let (q, k) = (values(1, 6), values(2, 6));
        let score = |m, n| {
            finite::dot(&forward(&q, &table, &[m], (6, 6), 1.0), &forward(&k, &table, &[n], (6, 6), 1.0))
        };
        assert!((score(3, 1) - score(11, 9)).abs() < 1e-12);
        assert!((score(3, 1) - score(3, 2)).abs() > 1e-3);
        assert_eq!(forward(&q, &table, &[0], (6, 6), 1.0), q);
    }

    #[test]
    fn halves_are_rotated_together() {
        // Position 1, one frequency of 90 degrees: (a, b) -> (−b, a).
        let table = table(2, &[std::f64::consts::FRAC_PI_2]);
        let y = forward(&[3.0, 5.0], &table, &[1], (2, 2), 1.0);
        assert!((y[0] + 5.0).abs() < 1e-12 && (y[1] - 3.0).abs() < 1e-12);
    }

    #[test]
    fn gradients() {
        let table = table(5, &inv_freq(4, 10.0));
        let (x, c, at) = (values(1, 24), values(2, 24), [4, 0, 2]);
        let dx = backward(&c, &table, &at, (8, 4));
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &forward(x, &table, &at, (8, 4), 1.0)));
    }
}
