//! Central differences: they check every backward function of the references.

/// Σ a·b: turns a vector-valued forward into a scalar whose gradient is the backward of `b`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Compares `gradient` with (f(x + h) - f(x - h)) / 2h at the elements `which`.
///
/// With h = 1e-5 the truncation error is about 1e-10 and the rounding error about 1e-11 for values near one,
/// so a tolerance of 1e-8 + 1e-6·|gradient| allows for curvature but not for a wrong term.
pub fn difference(
    x: &[f64],
    gradient: &[f64],
    which: impl IntoIterator<Item = usize>,
    mut f: impl FnMut(&[f64]) -> f64,
) -> Result<(), String> {
    if x.len() != gradient.len() {
        return Err(format!("{} values but {} gradients", x.len(), gradient.len()));
    }
    let mut moved = x.to_vec();
    for i in which {
        let h = 1e-5 * x[i].abs().max(1.0);
        moved[i] = x[i] + h;
        let above = f(&moved);
        moved[i] = x[i] - h;
        let below = f(&moved);
        moved[i] = x[i];
        let expected = (above - below) / (2.0 * h);
        let allowed = 1e-8 + 1e-6 * expected.abs().max(gradient[i].abs());
        // Written so that a NaN fails.
        let near = (expected - gradient[i]).abs() <= allowed;
        if !near {
            return Err(format!("element {i}: difference {expected:e}, gradient {:e}", gradient[i]));
        }
    }
    Ok(())
}

/// [`difference`] over all elements; panics with the `name` of the gradient.
pub fn check(name: &str, x: &[f64], gradient: &[f64], f: impl FnMut(&[f64]) -> f64) {
    if let Err(message) = difference(x, gradient, 0..x.len(), f) {
        panic!("{name}: {message}");
    }
}

#[test]
fn a_spoilt_gradient_fails() {
    let x = [0.5, -1.25, 2.0];
    let cube = |x: &[f64]| x.iter().map(|v| v * v * v).sum::<f64>();
    let mut gradient: Vec<f64> = x.iter().map(|v| 3.0 * v * v).collect();
    assert!(difference(&x, &gradient, 0..3, cube).is_ok());
    gradient[1] *= 1.0 + 1e-5;
    assert!(difference(&x, &gradient, 0..3, cube).unwrap_err().contains("element 1"));
    gradient[1] = f64::NAN;
    assert!(difference(&x, &gradient, 0..3, cube).is_err());
    assert!(difference(&x, &gradient[..2], 0..2, cube).is_err());
}
