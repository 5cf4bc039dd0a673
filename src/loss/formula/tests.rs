use super::*;
use crate::reference::finite;
use crate::rng::values;

const PLAIN: Terms = Terms { length_normalize: false, kl: 0.0, negative_floor: None };

/// A group of one-token sequences with these log-ratios to references of arbitrary log-probs.
fn of_ratios(formula: Formula, ratios: &[f64]) -> Outcome {
    let reference: Vec<f64> = (0..ratios.len()).map(|i| -30.0 - 7.0 * i as f64).collect();
    let policy: Vec<[f64; 1]> = ratios.iter().zip(&reference).map(|(r, b)| [r + b]).collect();
    let policy: Vec<&[f64]> = policy.iter().map(|p| p.as_slice()).collect();
    forward(formula, &policy, None, &reference, PLAIN)
}

fn d2o(alpha: f64, beta: f64, ratios: &[f64]) -> Outcome {
    of_ratios(Formula::D2o { alpha, beta }, ratios)
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 6e-9 * expected.abs().max(1.0), "{found} {expected}");
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
        near(found.margin(), z);
        near(found.rewards[1], alpha * ratios[ratios.len() - 1]);
        near(found.loss, loss);
        anchors.iter().for_each(|a| near(a[0], anchor));
        near(last[0], negative);
    }
}

#[test]
fn one_loss_of_the_mean_is_below_the_mean_of_losses() {
    let single = [0.5, -0.25, 1.25].map(|r| d2o(0.1, 0.1, &[r, -2.0]).loss);
    let mean = single.iter().sum::<f64>() / 3.0;
    near(mean, 0.57640082);
    assert!(d2o(0.1, 0.1, &[0.5, -0.25, 1.25, -2.0]).loss < mean);
}

#[test]
fn the_order_of_the_anchors_does_not_matter() {
    let (a, b) = (d2o(0.2, 0.3, &[0.5, -1.0, 2.0, -2.0]), d2o(0.2, 0.3, &[2.0, 0.5, -1.0, -2.0]));
    near(a.loss, b.loss);
    a.coefficients.iter().zip(&b.coefficients).for_each(|(a, b)| near(a[0], b[0]));
}

/// The checks of the formula's description: r_w = 0.8, r_l = -1.2, beta = 0.1.
#[test]
fn known_values() {
    let pair = [0.8, -1.2];
    let dpo = of_ratios(Formula::Dpo { beta: 0.1, label_smoothing: 0.0 }, &pair);
    near(dpo.loss, 0.59813887);
    near(of_ratios(Formula::Hinge { beta: 0.1 }, &pair).loss, 0.8);
    let npo = of_ratios(Formula::Npo { beta: 0.1 }, &pair[1..]);
    near(npo.loss, 12.69892203);
    near(npo.coefficients[0][0], 0.94007190);
    near(of_ratios(Formula::Ipo { beta: 0.25 }, &pair).loss, 0.0);
    near(of_ratios(Formula::Ipo { beta: 0.1 }, &pair).loss, 9.0);
}

#[test]
fn d2o_of_one_anchor_is_dpo_and_without_anchors_npo() {
    let pair = [0.8, -1.2];
    assert_eq!(d2o(0.1, 0.1, &pair), of_ratios(Formula::Dpo { beta: 0.1, label_smoothing: 0.0 }, &pair));
    // −(2/β) log σ(−β r_l) · α/2 with inverse temperature α.
    let (half, npo) = (d2o(0.1, 0.0, &pair), of_ratios(Formula::Npo { beta: 0.1 }, &pair[1..]));
    near(half.loss * 2.0 / 0.1, npo.loss);
    near(half.coefficients[1][0] * 2.0 / 0.1, npo.coefficients[0][0]);
    assert_eq!(half.coefficients[0][0], 0.0);
}

#[test]
fn sft_is_the_token_mean_and_gradient_ascent_its_opposite() {
    let policy: [&[f64]; 2] = [&[-3.0, -1.0, -2.0], &[-0.5, -0.5]];
    let found = forward(Formula::Sft, &policy, None, &[], PLAIN);
    near(found.loss, 1.25);
    assert_eq!(found.coefficients, [vec![-1.0 / 6.0; 3], vec![-0.25; 2]]);
    let opposite = forward(Formula::Ga, &policy[1..], None, &[], PLAIN);
    assert_eq!((opposite.loss, &opposite.coefficients[0]), (-0.5, &vec![0.5; 2]));
}

#[test]
fn unlikelihood_of_likely_tokens_stays_finite() {
    let found = forward(Formula::Ul, &[&[-1.0, 0.0, -1e-6]], None, &[], PLAIN);
    let p = (-1.0f64).exp();
    near(found.coefficients[0][0], p / (1.0 - p) / 3.0);
    // The tangent at 1 − p = LEAST has slope 1 / LEAST in p.
    near(found.coefficients[0][1], 1.0 / LEAST / 3.0);
    assert!(found.loss.is_finite());
    let (just_above, at) = (unlikelihood((-LEAST * 1.000001).ln_1p()), unlikelihood((-LEAST).ln_1p()));
    assert!((just_above.0 - at.0).abs() < 1e-5 && (just_above.1 / at.1 - 1.0).abs() < 1e-5);
}

#[test]
fn kto_pulls_towards_good_answers_and_away_from_bad_ones() {
    let formula = Formula::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 2.0 };
    let terms = Terms { kl: 0.5, ..PLAIN };
    let good = forward(formula, &[&[-9.0, -1.0], &[]], None, &[-11.0, 0.0], terms);
    let value = sigmoid(0.1 * (1.0 - 0.5));
    near(good.loss, 1.0 - value);
    near(good.coefficients[0][1], -0.1 * value * (1.0 - value));
    near(good.rewards[0], 0.1);
    let bad = forward(formula, &[&[], &[-9.0]], None, &[0.0, -11.0], terms);
    let value = sigmoid(0.1 * (0.5 - 2.0));
    near(bad.loss, 2.0 * (1.0 - value));
    near(bad.coefficients[1][0], 2.0 * 0.1 * value * (1.0 - value));
    assert!(bad.coefficients[0].is_empty());
}

#[test]
fn far_margins_stay_finite() {
    assert_eq!(d2o(1.0, 1.0, &[0.0, -2000.0]).loss, 0.0);
    let lost = d2o(1.0, 1.0, &[0.0, 2000.0]);
    assert_eq!((lost.loss, lost.coefficients), (2000.0, vec![vec![-1.0], vec![1.0]]));
}

#[test]
fn gradients() {
    use Formula::*;
    for formula in [
        Sft,
        Ga,
        Ul,
        Dpo { beta: 0.7, label_smoothing: 0.2 },
        Ipo { beta: 0.4 },
        Slic { delta: 9.0, sft_weight: 0.3 },
        Slic { delta: -9.0, sft_weight: 0.3 },
        Hinge { beta: 0.3 },
        Simpo { beta: 2.0, gamma: 0.7 },
        Orpo { beta: 0.4 },
        Kto { beta: 0.6, desirable_weight: 1.3, undesirable_weight: 0.8 },
        Npo { beta: 0.5 },
        Simnpo { beta: 2.5, gamma: 0.2 },
        D2o { alpha: 0.6, beta: 0.9 },
    ] {
        let cases: &[&[usize]] = match formula {
            D2o { .. } => &[&[3, 5, 2, 7]],
            Kto { .. } => &[&[4, 0], &[0, 4]],
            Ga | Ul | Npo { .. } | Simnpo { .. } => &[&[6]],
            _ => &[&[3, 5]],
        };
        let kinds = [[false, false], [true, false], [false, true], [true, true]];
        for (&lengths, [length_normalize, weighted]) in
            cases.iter().flat_map(|case| kinds.map(|kind| (case, kind)))
        {
            // Log-probs clearly below 0.
            let tokens: Vec<f64> = values(1, lengths.iter().sum()).iter().map(|v| -0.1 - v.abs()).collect();
            let reference = values(2, lengths.len());
            let terms = Terms { length_normalize, kl: 0.3, negative_floor: Some(1.0) };
            fn parts<'a>(lengths: &[usize], mut rest: &'a [f64]) -> Vec<&'a [f64]> {
                let mut part = |&n: &usize| {
                    let (own, others) = rest.split_at(n);
                    rest = others;
                    own
                };
                lengths.iter().map(&mut part).collect()
            }
            let weights: Vec<f64> = values(3, tokens.len()).iter().map(|v| v.max(0.0)).collect();
            let weights = parts(lengths, &weights);
            let loss = |tokens: &[f64]| {
                let weights = weighted.then_some(&weights[..]);
                forward(formula, &parts(lengths, tokens), weights, &reference, terms)
            };
            let found = loss(&tokens);
            finite::check("dlogp", &tokens, &found.coefficients.concat(), |tokens| loss(tokens).loss);
            let (half, shares) = mean(&[found.clone(), found.clone()]);
            assert!((half - found.loss).abs() < 1e-15);
            near(shares[1][0], found.coefficients.concat()[0] / 2.0);
        }
    }
}
