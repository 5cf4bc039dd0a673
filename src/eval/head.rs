//! A linear head on a model's hidden states: logistic regression that tells two kinds of answers apart.

use serde::{Deserialize, Serialize};

/// A linear head. Its score of a state is the logarithm of how much likelier the state is among the first
/// kind of answers than among the second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// One weight per element of a state.
    weights: Vec<f32>,
    bias: f32,
}

/// Steps of a fit; with Nesterov's momentum, far more than these well-conditioned problems need.
const STEPS: usize = 120;

impl Head {
    /// The score of a state.
    pub fn score(&self, state: &[f32]) -> f64 {
        let product = self.weights.iter().zip(state).map(|(w, x)| f64::from(*w) * f64::from(*x));
        f64::from(self.bias) + product.sum::<f64>()
    }

    /// The head whose score is the mean of the scores of `heads`.
    pub fn mean(heads: &[Self]) -> Self {
        let n = heads.len().max(1) as f32;
        let width = heads.first().map_or(0, |head| head.weights.len());
        let mean = |of: &dyn Fn(&Self) -> f32| heads.iter().map(of).sum::<f32>() / n;
        Self { weights: (0..width).map(|i| mean(&|head| head.weights[i])).collect(), bias: mean(&|h| h.bias) }
    }

    /// Fits a head that tells `first` from `second`: logistic regression on standardised states, with `ridge`
    /// times half the squared norm of the weights added to the mean loss. Both kinds weigh the same, however
    /// many there are.
    pub fn fit(first: &[&[f32]], second: &[&[f32]], ridge: f64) -> Self {
        let all: Vec<(&[f32], f64)> = [(first, 1.0), (second, -1.0)]
            .iter()
            .flat_map(|(states, sign)| states.iter().map(move |state| (*state, *sign)))
            .collect();
        let width = all.first().map_or(0, |(state, _)| state.len());
        let n = all.len() as f64;
        let mut mean = vec![0.0; width];
        let mut deviation = vec![0.0; width];
        for (state, _) in &all {
            mean.iter_mut().zip(*state).for_each(|(m, x)| *m += f64::from(*x) / n);
        }
        for (state, _) in &all {
            let apart = state.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m);
            deviation.iter_mut().zip(apart).for_each(|(d, a)| *d += a * a / n);
        }
        // An element that never changes tells nothing.
        let scale: Vec<f64> =
            deviation.iter().map(|d| if *d > 1e-12 { 1.0 / d.sqrt() } else { 0.0 }).collect();
        let rows: Vec<(Vec<f64>, f64, f64)> = all
            .iter()
            .map(|(state, sign)| {
                let elements = state.iter().zip(&mean).zip(&scale);
                let count = if *sign > 0.0 { first.len() } else { second.len() };
                (elements.map(|((x, m), s)| (f64::from(*x) - m) * s).collect(), *sign, 0.5 / count as f64)
            })
            .collect();
        let (weights, bias) = descend(&rows, width, ridge);
        let scaled: Vec<f64> = weights.iter().zip(&scale).map(|(w, s)| w * s).collect();
        let moved: f64 = scaled.iter().zip(&mean).map(|(w, m)| w * m).sum();
        Self { weights: scaled.iter().map(|w| *w as f32).collect(), bias: (bias - moved) as f32 }
    }
}

/// Minimises the mean logistic loss of `rows` (state, sign, weight) plus the ridge: gradient descent with
/// Nesterov's momentum, whose step follows from the largest curvature.
fn descend(rows: &[(Vec<f64>, f64, f64)], width: usize, ridge: f64) -> (Vec<f64>, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // The largest eigenvalue of the weighted second moments, by power iteration; the bias adds 1.
    let mut direction = vec![1.0 / (width.max(1) as f64).sqrt(); width];
    let mut largest = 0.0;
    for _ in 0..20 {
        let mut next = vec![0.0; width];
        for (state, _, weight) in rows {
            let along = weight * dot(state, &direction);
            next.iter_mut().zip(state).for_each(|(n, x)| *n += along * x);
        }
        largest = dot(&next, &next).sqrt();
        if largest == 0.0 {
            break;
        }
        direction = next.iter().map(|n| n / largest).collect();
    }
    let rate = 1.0 / (0.25 * (1.2 * largest + 1.0) + ridge);
    let (mut weights, mut bias) = (vec![0.0; width], 0.0);
    let (mut ahead, mut ahead_bias) = (weights.clone(), bias);
    let mut momentum = 1.0f64;
    for _ in 0..STEPS {
        let mut gradient: Vec<f64> = ahead.iter().map(|w| ridge * w).collect();
        let mut of_bias = 0.0;
        for (state, sign, weight) in rows {
            let margin = sign * (dot(state, &ahead) + ahead_bias);
            let slope = -sign * weight / (1.0 + margin.exp());
            gradient.iter_mut().zip(state).for_each(|(g, x)| *g += slope * x);
            of_bias += slope;
        }
        let next = (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt()) / 2.0;
        let kept = (momentum - 1.0) / next;
        momentum = next;
        for ((w, a), g) in weights.iter_mut().zip(&mut ahead).zip(&gradient) {
            let moved = *a - rate * g;
            *a = moved + kept * (moved - *w);
            *w = moved;
        }
        let moved = ahead_bias - rate * of_bias;
        ahead_bias = moved + kept * (moved - bias);
        bias = moved;
    }
    (weights, bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_finds_the_direction_that_differs() {
        // The first element differs by kind, the second is noise, the third is constant, and the first is
        // far from zero.
        let state = |i: usize, kind: f32| vec![100.0 + kind + 0.3 * (i as f32).sin(), (i as f32).cos(), 7.0];
        let states: [Vec<Vec<f32>>; 2] =
            [(0..40).map(|i| state(i, 1.0)).collect(), (40..70).map(|i| state(i, -1.0)).collect()];
        let views = states.each_ref().map(|list| list.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let head = Head::fit(&views[0], &views[1], 0.01);
        assert!(
            views[0].iter().all(|s| head.score(s) > 1.0) && views[1].iter().all(|s| head.score(s) < -1.0)
        );
        assert_eq!(head.weights[2], 0.0);
        assert!(head.weights[1].abs() < 0.1 * head.weights[0].abs());
        let half = Head::mean(&[head.clone(), Head { weights: vec![0.0; 3], bias: 0.0 }]);
        assert!((half.score(views[0][0]) - head.score(views[0][0]) / 2.0).abs() < 1e-3);
    }
}
