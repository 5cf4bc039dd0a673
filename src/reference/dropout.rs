//! Dropout whose mask is a function of counters, so that the backward needs no stored mask.

use crate::rng;

/// The inputs that determine the mask.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Probability of dropping an element, in f32 as on the device.
    pub p: f32,
    /// The number of the adapter in the model.
    pub stream: u32,
    /// The number of the micro-batch in the run.
    pub step: u32,
    /// The run's seed.
    pub seed: u32,
}

/// Element i is kept, times 1/(1−p), when `uniform(pcg4d([i, stream, step, seed])[0]) >= p`; else it is 0.
///
/// The backward is the same function on the gradient.
pub fn forward(params: Params, x: &[f64]) -> Vec<f64> {
    let Params { p, stream, step, seed } = params;
    let kept = |i: usize| rng::uniform(rng::pcg4d([i as u32, stream, step, seed])[0]) >= p;
    x.iter().enumerate().map(|(i, x)| if kept(i) { x / (1.0 - f64::from(p)) } else { 0.0 }).collect()
}

/// dx from dy: the same mask and factor.
pub fn backward(params: Params, dy: &[f64]) -> Vec<f64> {
    forward(params, dy)
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn share_scale_and_streams() {
        let params = Params { p: 0.25, stream: 3, step: 5, seed: 7 };
        let y = forward(params, &[1.0; 8000]);
        let kept = y.iter().filter(|&&v| v != 0.0).count();
        assert!((kept as i64 - 6000).abs() < 200, "{kept} of 8000 kept");
        assert!(y.iter().all(|&v| v == 0.0 || v == 1.0 / 0.75));
        assert_eq!(forward(Params { p: 0.0, ..params }, &[1.0; 9]), [1.0; 9]);
        for other in
            [Params { stream: 4, ..params }, Params { step: 6, ..params }, Params { seed: 8, ..params }]
        {
            assert_ne!(forward(other, &[1.0; 64]), y[..64]);
        }
    }

    #[test]
    fn gradients() {
        let params = Params { p: 0.5, stream: 1, step: 2, seed: 3 };
        let (x, c) = (values(1, 16), values(2, 16));
        finite::check("dx", &x, &backward(params, &c), |x| finite::dot(&c, &forward(params, x)));
    }
}
