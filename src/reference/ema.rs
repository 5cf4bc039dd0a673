//! The reference model as a moving average of the policy.

/// decay · reference + (1 − decay) · policy, element by element.
pub fn forward(reference: &[f64], policy: &[f64], decay: f64) -> Vec<f64> {
    assert_eq!(reference.len(), policy.len());
    reference.iter().zip(policy).map(|(r, p)| decay * r + (1.0 - decay) * p).collect()
}

#[test]
fn by_hand() {
    assert_eq!(forward(&[1.0, 4.0], &[3.0, 0.0], 0.75), [1.5, 3.0]);
}
