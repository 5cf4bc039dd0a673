//! Losses over summed log-probabilities: one group of sequences in, a loss and one coefficient per sequence out.

use super::activation::sigmoid;

/// The method, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Minus the mean token log-prob of the completion; needs no reference. Of several completions, their mean.
    Sft,
    /// Rafailov et al., arXiv 2305.18290: the sequences are [chosen, rejected].
    Dpo {
        /// Inverse temperature.
        beta: f64,
        /// ε of conservative DPO: −(1−ε) log σ(z) − ε log σ(−z).
        label_smoothing: f64,
    },
    /// Duan et al., arXiv 2403.03419: the sequences are [anchor 1, .., anchor K, negative].
    D2o {
        /// Weight of the negative's log-ratio.
        alpha: f64,
        /// Weight of the mean of the anchors' log-ratios.
        beta: f64,
    },
}

/// One group's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The group's loss, not yet divided by the number of groups.
    pub loss: f64,
    /// The argument of log σ, the reward margin; 0 for SFT, which has none.
    pub z: f64,
    /// What z is the difference of: weight × mean log-ratio of all sequences but the last, weight × log-ratio of the last.
    pub rewards: [f64; 2],
    /// dloss/dlogp of every sequence, of its summed log-prob: a division by the length is already in it.
    pub coefficients: Vec<f64>,
}

/// log(1 + e^x) without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// One group: summed log-probs of its sequences under the policy and under each sequence's own reference, and
/// their lengths in tokens.
///
/// With `length_normalize` log-probs are divided by the length first; SFT always is. A sequence of length 0
/// has no log-prob to move: its term and its coefficient are 0.
pub fn forward(
    method: Method,
    policy: &[f64],
    reference: &[f64],
    lengths: &[u32],
    length_normalize: bool,
) -> Outcome {
    let n = policy.len();
    // d(term)/d(logp) of every sequence, before the loss's own weights.
    let share: Vec<f64> = lengths
        .iter()
        .map(|&l| match (l, length_normalize || method == Method::Sft) {
            (0, _) => 0.0,
            (l, true) => 1.0 / f64::from(l),
            (_, false) => 1.0,
        })
        .collect();
    // dz/dlogp.
    let weights: Vec<f64> = (0..n).map(|i| share[i] * weight(method, i, n)).collect();
    if method == Method::Sft {
        let mean: f64 = (0..n).map(|i| weights[i] * policy[i]).sum();
        let coefficients = weights.iter().map(|w| -w).collect();
        return Outcome { loss: -mean, z: 0.0, rewards: [0.0; 2], coefficients };
    }
    let parts: Vec<f64> = (0..n).map(|i| weights[i] * (policy[i] - reference[i])).collect();
    let rewards = [parts[..n - 1].iter().sum(), -parts[n - 1]];
    let z: f64 = parts.iter().sum();
    let smooth = if let Method::Dpo { label_smoothing, .. } = method { label_smoothing } else { 0.0 };
    let loss = (1.0 - smooth) * softplus(-z) + smooth * softplus(z);
    let dz = smooth * sigmoid(z) - (1.0 - smooth) * sigmoid(-z);
    Outcome { loss, z, rewards, coefficients: weights.iter().map(|w| dz * w).collect() }
}

/// The factor of sequence `i` of `n` in z.
fn weight(method: Method, i: usize, n: usize) -> f64 {
    match method {
        Method::Sft => 1.0 / n as f64,
        Method::Dpo { beta, .. } => [beta, -beta][i],
        Method::D2o { alpha, .. } if i + 1 == n => -alpha,
        Method::D2o { beta, .. } => beta / (n - 1) as f64,
    }
}

/// The mean over the groups of an optimizer batch: the loss, and every group's coefficients divided by their number.
pub fn mean(groups: &[Outcome]) -> (f64, Vec<Vec<f64>>) {
    let n = groups.len() as f64;
    let coefficients = groups.iter().map(|g| g.coefficients.iter().map(|c| c / n).collect()).collect();
    (groups.iter().map(|g| g.loss).sum::<f64>() / n, coefficients)
}

#[cfg(test)]
mod tests {
    use super::super::{finite, rng::values};
    use super::*;

    /// D²O of log-ratios against a reference of arbitrary log-probs.
    fn d2o(alpha: f64, beta: f64, ratios: &[f64]) -> Outcome {
        let reference: Vec<f64> = (0..ratios.len()).map(|i| -30.0 - 7.0 * i as f64).collect();
        let policy: Vec<f64> = ratios.iter().zip(&reference).map(|(r, b)| r + b).collect();
        forward(Method::D2o { alpha, beta }, &policy, &reference, &vec![9; ratios.len()], false)
    }

    #[test]
    fn the_table_of_d2o() {
        let three = [0.5, -0.25, 1.25, -2.0];
        for (alpha, beta, ratios, z, loss, anchor, negative) in [
            (0.3, 0.2, &[0.0; 5][..], 0.0, std::f64::consts::LN_2, -0.5 * 0.2 / 4.0, 0.5 * 0.3),
            (0.1, 0.1, &three, 0.25, 0.57593942, -0.01459412, 0.04378235),
            (1.0, 1.0, &three, 2.5, 0.07888973, -0.02528606, 0.07585818),
            (0.2, 0.1, &[1.5, -0.5, -3.0], 0.65, 0.42005534, -0.01714948, 0.06859791),
        ] {
            let found = d2o(alpha, beta, ratios);
            let (last, anchors) = found.coefficients.split_last().unwrap();
            let [first, last_reward] = found.rewards;
            assert!((found.z - z).abs() < 1e-12 && (first - last_reward - z).abs() < 1e-12, "{found:?}");
            assert!((last_reward - alpha * ratios[ratios.len() - 1]).abs() < 1e-12, "{found:?}");
            assert!((found.loss - loss).abs() < 6e-9, "{found:?}");
            assert!(anchors.iter().all(|a| (a - anchor).abs() < 6e-9), "{found:?}");
            assert!((last - negative).abs() < 6e-9, "{found:?}");
        }
    }

    #[test]
    fn one_loss_of_the_mean_is_below_the_mean_of_losses() {
        let single = [0.5, -0.25, 1.25].map(|r| d2o(0.1, 0.1, &[r, -2.0]).loss);
        let mean = single.iter().sum::<f64>() / 3.0;
        assert!((mean - 0.57640082).abs() < 6e-9);
        assert!(d2o(0.1, 0.1, &[0.5, -0.25, 1.25, -2.0]).loss < mean);
    }

    #[test]
    fn the_order_of_the_anchors_does_not_matter() {
        let (a, b) = (d2o(0.2, 0.3, &[0.5, -1.0, 2.0, -2.0]), d2o(0.2, 0.3, &[2.0, 0.5, -1.0, -2.0]));
        assert!((a.loss - b.loss).abs() < 1e-15 && (a.z - b.z).abs() < 1e-14);
        assert!(a.coefficients.iter().zip(&b.coefficients).all(|(a, b)| (a - b).abs() < 1e-15));
    }

    #[test]
    fn d2o_of_one_anchor_is_dpo_and_without_anchors_npo() {
        let (policy, reference, lengths) = ([-9.2, -31.2], [-10.0, -30.0], [4, 5]);
        let dpo = Method::Dpo { beta: 0.1, label_smoothing: 0.0 };
        let pair = forward(dpo, &policy, &reference, &lengths, false);
        let one = forward(Method::D2o { alpha: 0.1, beta: 0.1 }, &policy, &reference, &lengths, false);
        assert_eq!(pair, one);
        assert!((pair.loss - 0.59813887).abs() < 6e-9);
        // −(2/β) log σ(−β r_l) · α/2 with inverse temperature α.
        let npo = forward(Method::D2o { alpha: 0.1, beta: 0.0 }, &policy, &reference, &lengths, false);
        assert!((npo.loss * 2.0 / 0.1 - 12.69892203).abs() < 6e-8);
        assert!((npo.coefficients[1] * 2.0 / 0.1 - 0.94007190).abs() < 6e-8 && npo.coefficients[0] == 0.0);
    }

    #[test]
    fn sft_is_the_token_mean() {
        let found = forward(Method::Sft, &[-6.0, -1.0], &[], &[3, 2], false);
        assert!((found.loss - 1.25).abs() < 1e-15 && found.z == 0.0);
        let expected = [-1.0 / 6.0, -0.25];
        assert!(found.coefficients.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15));
    }

    #[test]
    fn far_margins_stay_finite() {
        assert_eq!(d2o(1.0, 1.0, &[0.0, -2000.0]).loss, 0.0);
        let lost = d2o(1.0, 1.0, &[0.0, 2000.0]);
        assert_eq!((lost.loss, lost.coefficients), (2000.0, vec![-1.0, 1.0]));
    }

    #[test]
    fn gradients() {
        for method in [
            Method::Sft,
            Method::Dpo { beta: 0.7, label_smoothing: 0.2 },
            Method::D2o { alpha: 0.6, beta: 0.9 },
        ] {
            let n = if matches!(method, Method::D2o { .. }) { 4 } else { 2 };
            let (policy, reference) = (values(1, n), values(2, n));
            for normalize in [false, true] {
                let loss =
                    |policy: &[f64]| forward(method, policy, &reference, &[3, 5, 2, 7][..n], normalize);
                let found = loss(&policy);
                finite::check("dlogp", &policy, &found.coefficients, |policy| loss(policy).loss);
                let (half, shares) = mean(&[found.clone(), found.clone()]);
                assert!((half - found.loss).abs() < 1e-15 && shares[1][0] == found.coefficients[0] / 2.0);
            }
        }
    }
}
