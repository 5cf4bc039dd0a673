//! The MLP's activation: f(x), or gated f(gate) · up (Shazeer 2020).

/// The function f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// x · σ(x)
    Silu,
    /// x · Φ(x)
    Gelu,
    /// x · Φ(x), with the tanh approximation of Φ.
    GeluTanh,
}

/// σ(x) without overflow on either side.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Φ(x): the series of erf near zero, the continued fraction of erfc further from it (Abramowitz & Stegun,
/// 7.1.6 and 7.1.14).
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let factor = (-z * z).exp() / std::f64::consts::PI.sqrt();
    let upper = if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 - factor * sum
    } else {
        let fraction = (1..200).rev().fold(z, |rest, n| z + f64::from(n) / 2.0 / rest);
        0.5 * factor / fraction
    };
    if x > 0.0 { 1.0 - upper } else { upper }
}

impl Function {
    /// f(x).
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Silu => x * sigmoid(x),
            Self::Gelu => x * normal_cdf(x),
            Self::GeluTanh => x * sigmoid(2.0 * inner(x).0),
        }
    }

    /// f'(x).
    pub fn slope(self, x: f64) -> f64 {
        match self {
            Self::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
            Self::Gelu => normal_cdf(x) + x * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt(),
            Self::GeluTanh => {
                let (u, du) = inner(x);
                let s = sigmoid(2.0 * u);
                s + x * s * (1.0 - s) * 2.0 * du
            }
        }
    }
}

/// u = √(2/π) (x + 0.044715 x³), the argument of tanh, and du/dx.
fn inner(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    (root * (x + 0.044715 * x.powi(3)), root * (1.0 + 3.0 * 0.044715 * x * x))
}

/// act = f(gate) · up, element by element; without `up`, f(gate).
pub fn forward(f: Function, gate: &[f64], up: Option<&[f64]>) -> Vec<f64> {
    let factor = |i: usize| up.map_or(1.0, |up| up[i]);
    gate.iter().enumerate().map(|(i, &g)| f.value(g) * factor(i)).collect()
}

/// (dgate, dup). Without `up`, dup is the gradient that an `up` of ones would have.
pub fn backward(f: Function, gate: &[f64], up: Option<&[f64]>, dact: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let factor = |i: usize| up.map_or(1.0, |up| up[i]);
    let at = |i: usize| (dact[i] * factor(i) * f.slope(gate[i]), dact[i] * f.value(gate[i]));
    (0..gate.len()).map(at).unzip()
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    const ALL: [Function; 3] = [Function::Silu, Function::Gelu, Function::GeluTanh];

    #[test]
    fn far_values_stay_finite() {
        for f in ALL {
            let up = [2.0, 2.0, 2.0];
            assert_eq!(forward(f, &[-1000.0, 1000.0, 0.0], Some(&up)), [0.0, 2000.0, 0.0], "{f:?}");
            let (dgate, dup) = backward(f, &[-1000.0, 1000.0], Some(&up), &[1.0, 1.0]);
            assert_eq!((dgate, dup), (vec![0.0, 2.0], vec![0.0, 1000.0]), "{f:?}");
        }
    }

    #[test]
    fn known_values() {
        // Φ(1), Φ(-3), Φ(4) from tables.
        for (x, cdf) in [(1.0, 0.841344746068543), (-3.0, 0.00134989803163009), (4.0, 0.999968328758167)] {
            assert!((normal_cdf(x) - cdf).abs() < 1e-14, "{x}: {}", normal_cdf(x));
            assert!((Function::GeluTanh.value(x) - x * cdf).abs() < 1e-3);
        }
        assert!((normal_cdf(2.8) - normal_cdf(2.8 + 1e-9)).abs() < 1e-10, "the two halves meet");
        assert!((normal_cdf(2.83) - normal_cdf(2.82)).abs() < 1e-3);
    }

    #[test]
    fn gradients() {
        let (gate, up, c) = (values(1, 9), values(2, 9), values(3, 9));
        let gate: Vec<f64> = gate.iter().map(|g| 5.0 * g).collect();
        for f in ALL {
            let (dgate, dup) = backward(f, &gate, Some(&up), &c);
            finite::check("dgate", &gate, &dgate, |g| finite::dot(&c, &forward(f, g, Some(&up))));
            finite::check("dup", &up, &dup, |u| finite::dot(&c, &forward(f, &gate, Some(u))));
            let (dx, _) = backward(f, &gate, None, &c);
            finite::check("dx", &gate, &dx, |g| finite::dot(&c, &forward(f, g, None)));
        }
    }
}
