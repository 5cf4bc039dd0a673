//! The coefficient of each token of retained answers.

use crate::loss::Retain;

/// Coefficients (R) of the tokens of whole answers, from their log-probs `logp` and those of the model before
/// training, `start`, both (R). `rows` has each answer's first row and its end.
pub fn forward(retain: Retain, logp: &[f64], start: &[f64], rows: &[[u32; 2]], scale: f64) -> Vec<f64> {
    let mut out = vec![0.0; logp.len()];
    for &[first, end] in rows {
        for r in first as usize..end as usize {
            out[r] = scale * retain.slope(logp[r], start[r]) / f64::from(end - first);
        }
    }
    out
}

#[test]
fn by_hand() {
    let logp = [-1.0, -2.0, -0.5];
    let rows = [[0, 2], [2, 3]];
    assert_eq!(forward(Retain::Sft, &logp, &logp, &rows, 0.5), [-0.25, -0.25, -0.5]);
    let start = [-1.0, -2.0 - 2f64.ln(), -0.5 + 2f64.ln()];
    let found = forward(Retain::Kl, &logp, &start, &rows, 1.0);
    for (found, expected) in found.iter().zip([0.0, 0.5, -0.5]) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
}
