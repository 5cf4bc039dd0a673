//! Compares a device's f32 values with the f64 values of the references.

use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<f64> = const { Cell::new(0.0) };
}

/// The largest error in this thread's comparisons since the last call, as a share of the largest expected
/// element of the same comparison.
pub fn take_largest_error() -> f64 {
    LARGEST.take()
}

/// Compares element by element: |found - expected| <= abs + eps·|expected|.
///
/// `abs` and `eps` are set once per data type, not per test. The error names the worst element (index,
/// expected, found) and the number of elements outside the tolerance. A NaN on either side is a failure, and
/// so is an infinity, unless both sides have the same one; different lengths are checked first and are a
/// failure.
pub fn compare(found: &[f32], expected: &[f64], abs: f64, eps: f64) -> Result<(), String> {
    compare_with(found, expected, |_| abs, eps)
}

/// Like [`compare`], with an absolute tolerance for each index. For a sum of rounded products this is a share
/// of the sum of their absolute values, because the products may cancel.
pub fn compare_with(
    found: &[f32],
    expected: &[f64],
    abs: impl Fn(usize) -> f64,
    eps: f64,
) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("lengths differ: expected {}, found {}", expected.len(), found.len()));
    }
    let largest = expected.iter().map(|e| e.abs()).filter(|e| e.is_finite()).fold(0.0, f64::max);
    let errors = found.iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).abs()).filter(|e| e.is_finite());
    let share = errors.fold(0.0, f64::max) / largest.max(f64::MIN_POSITIVE);
    LARGEST.set(LARGEST.get().max(if largest > 0.0 { share } else { 0.0 }));
    let mut off = 0usize;
    let mut worst: Option<(usize, f64)> = None;
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let f = f64::from(f);
        // The first test is false for a NaN; equality lets equal infinities pass.
        let near = (f - e).abs() <= abs(i) + eps * e.abs() && e.is_finite();
        if near || f == e {
            continue;
        }
        off += 1;
        let miss = ((f - e).abs() - abs(i) - eps * e.abs()).min(f64::MAX); // min() turns NaN into MAX
        if worst.is_none_or(|(_, most)| miss > most) {
            worst = Some((i, miss));
        }
    }
    match worst {
        None => Ok(()),
        Some((i, _)) => Err(format!(
            "index {i}: expected {:e}, found {:e}; {off} of {} off (abs {:e}, eps {eps:e})",
            expected[i],
            found[i],
            found.len(),
            abs(i)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spoilt_element_fails() {
        let expected = crate::rng::values(1, 1000);
        let found: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        assert_eq!(compare(&found, &expected, 1e-6, 1e-5), Ok(()));
        for (i, spoil) in
            [(0, 1e-4f32), (500, -1e-4), (999, f32::NAN), (3, f32::INFINITY), (4, f32::NEG_INFINITY)]
        {
            let mut spoilt = found.clone();
            spoilt[i] += spoil;
            let message = compare(&spoilt, &expected, 1e-6, 1e-5).unwrap_err();
            assert!(
                message.contains(&format!("index {i}:")) && message.contains("1 of 1000 off"),
                "{message}"
            );
        }
    }

    #[test]
    fn the_largest_error_is_kept_until_it_is_taken() {
        take_largest_error();
        assert_eq!(compare(&[1.0, 4.5], &[1.0, 4.0], 1.0, 0.0), Ok(()));
        assert_eq!(compare(&[1.0], &[1.0], 1.0, 0.0), Ok(()));
        assert_eq!([take_largest_error(), take_largest_error()], [0.125, 0.0]);
    }

    #[test]
    fn nan_infinity_and_length() {
        assert!(compare(&[1.0], &[f64::NAN], 1.0, 1.0).is_err());
        assert!(compare(&[f32::NAN], &[f64::NAN], 1.0, 1.0).is_err());
        assert!(compare(&[1.0], &[f64::INFINITY], 1.0, 1.0).is_err());
        assert!(compare(&[f32::NEG_INFINITY], &[f64::INFINITY], 1.0, 1.0).is_err());
        assert!(compare(&[f32::NEG_INFINITY], &[f64::NEG_INFINITY], 0.0, 0.0).is_ok());
        assert!(compare(&[1.0, 2.0], &[1.0], 1.0, 1.0).is_err());
        let two = compare(&[1.0, 5.0, 3.5], &[1.0, 2.0, 3.0], 0.1, 0.0).unwrap_err();
        assert!(two.contains("index 1: expected 2e0, found 5e0; 2 of 3 off"), "{two}");
    }
}
