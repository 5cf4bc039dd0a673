//! AdamW (Loshchilov & Hutter 2019), with the order of operations of `torch.optim.AdamW`.

/// The constants of one step.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the bias-corrected square root, outside of it.
    pub eps: f64,
    /// Decoupled weight decay: each step subtracts lr · weight_decay · w from w.
    pub weight_decay: f64,
    /// The step's number, from 1.
    pub step: u32,
    /// The clip scale, which every gradient is multiplied by first. If it is negative, the step is skipped.
    pub scale: f64,
}

/// One step over flat slices: changes the weights `w` and the moments `m` and `v` in place.
///
/// w −= lr·decay·w; m, v = moving averages of g, g²; w −= lr/(1−β1^t) · m / (sqrt(v)/sqrt(1−β2^t) + eps).
pub fn step(p: Params, w: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]) {
    if p.scale < 0.0 {
        return;
    }
    let correct1 = 1.0 - p.beta1.powf(f64::from(p.step));
    let correct2 = (1.0 - p.beta2.powf(f64::from(p.step))).sqrt();
    for i in 0..w.len() {
        let g = p.scale * g[i];
        m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g;
        v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
        w[i] -= p.lr * p.weight_decay * w[i];
        w[i] -= p.lr / correct1 * m[i] / (v[i].sqrt() / correct2 + p.eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Params =
        Params { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.05, step: 1, scale: 0.5 };

    #[test]
    fn the_first_step_is_a_sign_step() {
        // At t = 1 the bias-corrected moments are g and g², whatever the betas are.
        let (mut w, mut m, mut v) = ([2.0], [0.0], [0.0]);
        step(P, &mut w, &[-0.4], &mut m, &mut v);
        let expected = 2.0 * (1.0 - 0.1 * 0.05) + 0.1 * 0.2 / (0.2 + 1e-3);
        assert!((w[0] - expected).abs() < 1e-14, "{} {expected}", w[0]);
        assert!((m[0] + 0.02).abs() < 1e-15 && (v[0] - 0.0004).abs() < 1e-15);
    }

    #[test]
    fn three_steps_as_torch() {
        // torch.optim.AdamW in float64 on w = [1.0, -0.5] with these gradients times 0.5.
        let (mut w, mut m, mut v) = ([1.0, -0.5], [0.0; 2], [0.0; 2]);
        for (i, g) in [[0.3, -2.0], [-0.1, 0.0], [0.7, 1e-3]].iter().enumerate() {
            step(Params { step: i as u32 + 1, ..P }, &mut w, g, &mut m, &mut v);
        }
        for (found, expected) in w.iter().zip(TORCH) {
            assert!((found - expected).abs() < 1e-12, "{w:?}");
        }
    }

    const TORCH: [f64; 2] = [0.776769513376375, -0.274997242987401];
}
