//! The soft cap of logits (Gemma 2).

/// cap · tanh(x / cap), element by element.
pub fn forward(x: &[f64], cap: f64) -> Vec<f64> {
    x.iter().map(|x| cap * (x / cap).tanh()).collect()
}

/// dx from dy and the capped y.
pub fn backward(y: &[f64], dy: &[f64], cap: f64) -> Vec<f64> {
    y.iter().zip(dy).map(|(y, dy)| dy * (1.0 - (y / cap).powi(2))).collect()
}

#[test]
fn gradients() {
    use super::finite;
    use crate::rng::values;
    let (x, c) = (values(1, 9), values(2, 9));
    let dx = backward(&forward(&x, 0.5), &c, 0.5);
    finite::check("dx", &x, &dx, |x| finite::dot(&c, &forward(x, 0.5)));
}
