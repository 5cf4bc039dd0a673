//! The residual sum.

/// a + b, element by element; its backward passes the same gradient to both inputs.
pub fn forward(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn by_hand() {
    assert_eq!(forward(&[1.0, -2.0], &[0.5, 2.0]), [1.5, 0.0]);
}
