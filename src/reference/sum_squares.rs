//! The gradient norm and the factor that clips it.

/// Σ g².
pub fn forward(g: &[f64]) -> f64 {
    g.iter().map(|g| g * g).sum()
}

/// The factor of `torch.nn.utils.clip_grad_norm_`: min(1, max_norm / (norm + 1e-6)) with norm = sqrt(`sum`).
/// It is 1 if `max_norm` is 0. If the norm is NaN or infinite it is -1, which skips the step.
pub fn clip_scale(sum: f64, max_norm: f64) -> f64 {
    if !sum.is_finite() {
        return -1.0;
    }
    if max_norm == 0.0 {
        return 1.0;
    }
    (max_norm / (sum.sqrt() + 1e-6)).min(1.0)
}

#[test]
fn by_hand() {
    assert_eq!(forward(&[3.0, -4.0]), 25.0);
    assert_eq!(clip_scale(25.0, 1.0), 1.0 / (5.0 + 1e-6));
    assert_eq!(clip_scale(25.0, 6.0), 1.0);
    assert_eq!(clip_scale(0.0, 1.0), 1.0);
    assert_eq!(
        [clip_scale(25.0, 0.0), clip_scale(f64::NAN, 0.0), clip_scale(f64::INFINITY, 1.0)],
        [1.0, -1.0, -1.0]
    );
}
