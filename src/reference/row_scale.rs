//! Rows multiplied by their sequence's coefficient.

/// x (R, width) with row r times `coefficient[sequence[r]]`.
pub fn forward(x: &[f64], sequence: &[u32], coefficient: &[f64], width: usize) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x * coefficient[sequence[i / width] as usize]).collect()
}

#[test]
fn by_hand() {
    assert_eq!(forward(&[1.0, 2.0, 3.0, 4.0], &[1, 0], &[10.0, 0.5], 2), [0.5, 1.0, 30.0, 40.0]);
}
