//! Multiplies each row by its own coefficient.

/// x (R, width) with row r times `coefficient[r]`.
pub fn forward(x: &[f64], coefficient: &[f64], width: usize) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x * coefficient[i / width]).collect()
}

#[test]
fn by_hand() {
    assert_eq!(forward(&[1.0, 2.0, 3.0, 4.0], &[0.5, 10.0], 2), [0.5, 1.0, 30.0, 40.0]);
}
