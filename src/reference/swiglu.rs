//! The gated activation of Llama's MLP (Shazeer 2020): silu(gate) · up.

/// σ(x) without overflow on either side.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// act = gate · σ(gate) · up, element by element.
pub fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// (dgate, dup): silu'(g) = σ(g) · (1 + g · (1 − σ(g))).
pub fn backward(gate: &[f64], up: &[f64], dact: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let at = |i: usize| {
        let (g, s) = (gate[i], sigmoid(gate[i]));
        (dact[i] * up[i] * s * (1.0 + g * (1.0 - s)), dact[i] * g * s)
    };
    (0..gate.len()).map(at).unzip()
}

#[cfg(test)]
mod tests {
    use super::super::{finite, rng::values};
    use super::*;

    #[test]
    fn far_values_stay_finite() {
        assert_eq!(forward(&[-1000.0, 1000.0, 0.0], &[2.0, 2.0, 2.0]), [0.0, 2000.0, 0.0]);
        let (dgate, dup) = backward(&[-1000.0, 1000.0], &[2.0, 2.0], &[1.0, 1.0]);
        assert_eq!((dgate, dup), (vec![0.0, 2.0], vec![0.0, 1000.0]));
    }

    #[test]
    fn gradients() {
        let (gate, up, c) = (values(1, 9), values(2, 9), values(3, 9));
        let gate: Vec<f64> = gate.iter().map(|g| 5.0 * g).collect();
        let (dgate, dup) = backward(&gate, &up, &c);
        finite::check("dgate", &gate, &dgate, |g| finite::dot(&c, &forward(g, &up)));
        finite::check("dup", &up, &dup, |u| finite::dot(&c, &forward(&gate, u)));
    }
}
