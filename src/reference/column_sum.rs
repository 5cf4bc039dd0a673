//! Sums over the rows: bias gradients (`a` alone) and norm-weight gradients (`a`, `b` and a factor per row).

/// out (width) = earlier out + `Σ_t a[t,c] · b[t,c] · s[t]`; a and b are (rows, width), s is (rows).
///
/// An absent `b` or `s` counts as ones, an absent `out` as zeros.
pub fn forward(
    a: &[f64],
    b: Option<&[f64]>,
    s: Option<&[f64]>,
    width: usize,
    out: Option<&[f64]>,
) -> Vec<f64> {
    let mut sum = out.map_or_else(|| vec![0.0; width], <[f64]>::to_vec);
    assert_eq!(sum.len(), width);
    for (i, a) in a.iter().enumerate() {
        sum[i % width] += a * b.map_or(1.0, |b| b[i]) * s.map_or(1.0, |s| s[i / width]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::forward;

    #[test]
    fn by_hand() {
        let (a, b, s) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [1.0, -2.0]);
        assert_eq!(forward(&a, None, None, 2, None), [4.0, 6.0]);
        assert_eq!(forward(&a, Some(&b), None, 2, None), [26.0, 44.0]);
        assert_eq!(forward(&a, Some(&b), Some(&s), 2, Some(&[100.0, 100.0])), [63.0, 48.0]);
    }
}
