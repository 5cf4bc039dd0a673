//! Losses over log-probabilities: one group of sequences in, a loss and the coefficient of every token out.

/// The formula, with its constants. w is the chosen answer, l the rejected or flagged one, r a log-ratio to
/// the reference, and a bar a mean over the answer's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Formula {
    /// Minus the mean token log-prob of the completion; the mean of this over several completions.
    Sft,
    /// Gradient ascent, Yao et al., arXiv 2310.10683: plus the mean token log-prob of the flagged answer.
    Ga,
    /// Unlikelihood, Welleck et al., arXiv 1908.04319: −mean over the flagged answer's tokens of log(1 − p).
    /// Where 1 − p is below [`LEAST`], log(1 − p) continues as a straight line in p.
    Ul,
    /// Rafailov et al., arXiv 2305.18290: −log σ(β(r_w − r_l)). The sequences are [chosen, rejected], as of
    /// all pair methods.
    Dpo {
        /// Inverse temperature.
        beta: f64,
        /// ε of conservative DPO: −(1−ε) log σ(z) − ε log σ(−z).
        label_smoothing: f64,
    },
    /// Azar et al., arXiv 2310.12036: (r̄_w − r̄_l − 1/(2β))².
    Ipo {
        /// The paper's τ.
        beta: f64,
    },
    /// SLiC-HF, Zhao et al., arXiv 2305.10425: max(0, δ − (logp_w − logp_l)) + λ · SFT(w), without a
    /// reference.
    Slic {
        /// The margin δ.
        delta: f64,
        /// Weight λ of the SFT term.
        sft_weight: f64,
    },
    /// max(0, 1 − β(r_w − r_l)): TRL's `hinge`.
    Hinge {
        /// Weight of the log-ratios.
        beta: f64,
    },
    /// Meng et al., arXiv 2405.14734: −log σ(β(logp̄_w − logp̄_l) − γ), without a reference.
    Simpo {
        /// Weight of the mean log-probs.
        beta: f64,
        /// The target margin γ.
        gamma: f64,
    },
    /// Hong et al., arXiv 2403.07691: SFT(w) − λ log σ(log odds_w − log odds_l), odds = p/(1−p) with p =
    /// exp(logp̄).
    Orpo {
        /// Weight λ of the odds-ratio term; TRL calls it beta.
        beta: f64,
    },
    /// Ethayarajh et al., arXiv 2402.01306. The sequences are [chosen, rejected], and one of the two is
    /// empty. The loss of a good answer is w(1 − σ(β(r − KL))), of a bad one w(1 − σ(β(KL − r))).
    Kto {
        /// Inverse temperature.
        beta: f64,
        /// The weight w of good answers.
        desirable_weight: f64,
        /// The weight w of bad answers.
        undesirable_weight: f64,
    },
    /// Zhang et al., arXiv 2404.05868: −(2/β) log σ(−β r_l).
    Npo {
        /// Inverse temperature.
        beta: f64,
    },
    /// Fan et al., arXiv 2410.07163: −(2/β) log σ(−β logp̄_l − γ), without a reference.
    Simnpo {
        /// Weight of the mean log-prob.
        beta: f64,
        /// The margin γ.
        gamma: f64,
    },
    /// Duan et al., arXiv 2403.03419: −log σ((β/K) Σ r_i − α r_l). The sequences are [anchor 1, .., anchor K,
    /// negative].
    D2o {
        /// Weight of the negative's log-ratio.
        alpha: f64,
        /// Weight of the mean of the anchors' log-ratios.
        beta: f64,
    },
}

/// Where 1 − p is below this, log(1 − p) continues as its tangent in p.
pub const LEAST: f64 = 1e-5;

impl Formula {
    /// Whether the formula uses a reference model.
    pub fn has_reference(self) -> bool {
        use Formula::*;
        matches!(self, Dpo { .. } | Ipo { .. } | Hinge { .. } | Kto { .. } | Npo { .. } | D2o { .. })
    }

    /// Whether the formula always uses mean log-probs per token, whatever `length_normalize` says.
    pub fn is_per_token(self) -> bool {
        use Formula::*;
        matches!(self, Sft | Ga | Ul | Ipo { .. } | Simpo { .. } | Orpo { .. } | Simnpo { .. })
    }
}

/// Inputs of a loss other than its sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Use mean log-probs per token instead of sums.
    pub length_normalize: bool,
    /// KTO's estimate of KL(policy ‖ reference) over the whole optimizer batch, at least 0.
    pub kl: f64,
    /// For D²O: the loss takes a log-ratio of the negative below minus this as minus this, so that it does
    /// not push the negative further down. `None` for no floor.
    pub negative_floor: Option<f64>,
}

/// One group's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The group's loss, not yet divided by the number of groups.
    pub loss: f64,
    /// As TRL logs them: the mean reward of all sequences but the last, and the reward of the last. A reward
    /// is weight × log-ratio, or weight × log-prob if there is no reference. 0 for SFT, GA and
    /// unlikelihood, which have no rewards, and for missing sequences.
    pub rewards: [f64; 2],
    /// dloss/dlogp of every token of every sequence.
    pub coefficients: Vec<Vec<f64>>,
}

impl Outcome {
    /// The difference of the rewards; for D²O it is z, unless the negative is below its floor.
    pub fn margin(&self) -> f64 {
        self.rewards[0] - self.rewards[1]
    }
}

/// 1 / (1 + e^−x) without overflow.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// log(1 + e^x) without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// −log(1 − e^logp), with its tangent in p where 1 − p is below [`LEAST`]; and its derivative in logp.
fn unlikelihood(logp: f64) -> (f64, f64) {
    let (p, q) = (logp.exp(), -logp.exp_m1());
    let held = q.max(LEAST);
    (-held.ln() + (held - q) / LEAST, p / held)
}

/// log(p / (1 − p)) of p = e^logp.
pub fn log_odds(logp: f64) -> f64 {
    logp + unlikelihood(logp).0
}

/// The result of one group, from the token log-probs of its sequences and each sequence's summed log-prob
/// under its own reference.
///
/// `weights` multiply the log-probs of single tokens wherever a formula sums them, and so their coefficients;
/// `None` is a weight of 1 for all. The sums under the references must be weighted alike. Means are over all
/// tokens, whatever their weights.
///
/// A sequence without tokens has no log-prob to change: its score is 0.
pub fn forward(
    formula: Formula,
    policy: &[&[f64]],
    weights: Option<&[&[f64]]>,
    reference: &[f64],
    terms: Terms,
) -> Outcome {
    let n = policy.len();
    let weight = |i: usize, t: usize| weights.map_or(1.0, |weights| weights[i][t]);
    let weighted = |i: usize, logps: &[f64]| -> f64 {
        logps.iter().enumerate().map(|(t, logp)| weight(i, t) * logp).sum()
    };
    let length = |i: usize| policy[i].len().max(1) as f64;
    let share =
        |i: usize| if terms.length_normalize || formula.is_per_token() { 1.0 / length(i) } else { 1.0 };
    let sum = |i: usize| weighted(i, policy[i]);
    let score = |i: usize| (sum(i) - if formula.has_reference() { reference[i] } else { 0.0 }) * share(i);
    let mean = |i: usize| sum(i) / length(i);
    // Each token's coefficient from dloss/dscore of its sequence.
    let spread = |slopes: &[f64]| -> Vec<Vec<f64>> {
        let of = |i: usize| (0..policy[i].len()).map(|t| slopes[i] * share(i) * weight(i, t)).collect();
        (0..n).map(of).collect()
    };
    let done = |loss, rewards, slopes: &[f64]| Outcome { loss, rewards, coefficients: spread(slopes) };
    match formula {
        Formula::Sft | Formula::Ga => {
            let sign = if formula == Formula::Sft { -1.0 } else { 1.0 } / n as f64;
            done((0..n).map(|i| sign * score(i)).sum(), [0.0; 2], &vec![sign; n])
        }
        Formula::Ul => {
            let of = |i: usize| {
                let share = 1.0 / (length(i) * n as f64);
                let of_token = |(t, &logp)| (unlikelihood(logp), share * weight(i, t));
                policy[i].iter().enumerate().map(of_token).collect::<Vec<_>>()
            };
            Outcome {
                loss: (0..n).flat_map(of).map(|((loss, _), share)| share * loss).sum(),
                rewards: [0.0; 2],
                coefficients: (0..n)
                    .map(|i| of(i).iter().map(|((_, d), share)| share * d).collect())
                    .collect(),
            }
        }
        Formula::Dpo { beta, label_smoothing: e } => {
            let (up, down) = (beta * score(0), beta * score(1));
            let z = up - down;
            let slope = e * sigmoid(z) - (1.0 - e) * sigmoid(-z);
            let loss = (1.0 - e) * softplus(-z) + e * softplus(z);
            done(loss, [up, down], &[beta * slope, -beta * slope])
        }
        Formula::Ipo { beta } => {
            let off = score(0) - score(1) - 1.0 / (2.0 * beta);
            // As TRL logs them: from summed log-probs.
            let reward = |i: usize| beta * (sum(i) - reference[i]);
            done(off * off, [reward(0), reward(1)], &[2.0 * off, -2.0 * off])
        }
        Formula::Hinge { beta } => {
            let (up, down) = (beta * score(0), beta * score(1));
            let lacking = 1.0 - (up - down);
            let slope = if lacking > 0.0 { beta } else { 0.0 };
            done(lacking.max(0.0), [up, down], &[-slope, slope])
        }
        Formula::Slic { delta, sft_weight } => {
            let (up, down) = (score(0), score(1));
            let lacking = delta - (up - down);
            let slope = if lacking > 0.0 { 1.0 } else { 0.0 };
            let mut outcome = done(lacking.max(0.0) - sft_weight * mean(0), [up, down], &[-slope, slope]);
            let of_token = outcome.coefficients[0].iter_mut().enumerate();
            of_token.for_each(|(t, c)| *c -= sft_weight * weight(0, t) / length(0));
            outcome
        }
        Formula::Simpo { beta, gamma } => {
            let (up, down) = (beta * score(0), beta * score(1));
            let slope = -sigmoid(-(up - down - gamma)) * beta;
            done(softplus(-(up - down - gamma)), [up, down], &[slope, -slope])
        }
        Formula::Orpo { beta } => {
            let (w, l) = (score(0), score(1));
            let (of_w, of_l) = (unlikelihood(w), unlikelihood(l));
            let odds = log_odds(w) - log_odds(l);
            let slope = -beta * sigmoid(-odds);
            let loss = -w + beta * softplus(-odds);
            done(loss, [beta * w, beta * l], &[-1.0 + slope * (1.0 + of_w.1), -slope * (1.0 + of_l.1)])
        }
        Formula::Kto { beta, desirable_weight, undesirable_weight } => {
            let good = !policy[0].is_empty();
            let (sign, weight) = if good { (1.0, desirable_weight) } else { (-1.0, undesirable_weight) };
            let at = usize::from(!good);
            let value = sigmoid(sign * beta * (score(at) - terms.kl));
            let mut slopes = [0.0; 2];
            slopes[at] = -weight * sign * beta * value * (1.0 - value);
            let mut rewards = [0.0; 2];
            rewards[at] = beta * score(at);
            done(weight * (1.0 - value), rewards, &slopes)
        }
        Formula::Npo { beta } => {
            let r = score(0);
            done(2.0 / beta * softplus(beta * r), [0.0, beta * r], &[2.0 * sigmoid(beta * r)])
        }
        Formula::Simnpo { beta, gamma } => {
            let at = beta * score(0);
            done(2.0 / beta * softplus(at + gamma), [0.0, at], &[2.0 * sigmoid(at + gamma)])
        }
        Formula::D2o { alpha, beta } => {
            let k = (n - 1) as f64;
            let anchors = (0..n - 1).map(score).sum::<f64>() / k;
            let rewards = [if n > 1 { beta * anchors } else { 0.0 }, alpha * score(n - 1)];
            let floor = terms.negative_floor.map_or(f64::NEG_INFINITY, |floor| -floor);
            let z = rewards[0] - alpha * score(n - 1).max(floor);
            let mut slopes = vec![-sigmoid(-z) * beta / k; n - 1];
            slopes.push(if score(n - 1) < floor { 0.0 } else { sigmoid(-z) * alpha });
            done(softplus(-z), rewards, &slopes)
        }
    }
}

/// The mean over the groups of an optimizer batch: the mean loss, and every group's coefficients, by token,
/// divided by the number of groups.
pub fn mean(groups: &[Outcome]) -> (f64, Vec<Vec<f64>>) {
    let n = groups.len() as f64;
    let of = |g: &Outcome| g.coefficients.concat().iter().map(|c| c / n).collect();
    (groups.iter().map(|g| g.loss).sum::<f64>() / n, groups.iter().map(of).collect())
}

#[cfg(test)]
mod tests;
