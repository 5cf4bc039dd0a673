//! From one row of logits to a token: the filters of Hugging Face's generation in their order, then one draw.

use super::rng;

/// Settings of the filters.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Divides the logits; 0 takes the largest logit without a draw.
    pub temperature: f64,
    /// Keep the k largest; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of the largest probabilities whose mass reaches this; 1 keeps all.
    pub top_p: f64,
    /// Divides the positive and multiplies the other logits of the tokens seen; 1 changes nothing.
    pub repetition_penalty: f64,
}

/// The kept probabilities (vocab), zero where filtered out, before they are scaled to sum to one.
///
/// `seen` lists the tokens under the repetition penalty; each counts once. Ties with the last one kept are
/// kept. At temperature 0 the whole mass is on the largest logit, of equal ones the first.
pub fn kept(p: Params, logits: &[f64], seen: &[u32]) -> Vec<f64> {
    let mut l = logits.to_vec();
    for &token in seen {
        let from = logits[token as usize];
        l[token as usize] =
            if from > 0.0 { from / p.repetition_penalty } else { from * p.repetition_penalty };
    }
    if p.temperature == 0.0 {
        let best = (0..l.len()).fold(0, |best, i| if l[i] > l[best] { i } else { best });
        return (0..l.len()).map(|i| if i == best { 1.0 } else { 0.0 }).collect();
    }
    l.iter_mut().for_each(|l| *l /= p.temperature);
    let mut sorted = l.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    if p.top_k > 0 && p.top_k < l.len() {
        let least = sorted[p.top_k - 1];
        l.iter_mut().filter(|l| **l < least).for_each(|l| *l = f64::NEG_INFINITY);
    }
    let total: f64 = l.iter().map(|l| (l - sorted[0]).exp()).sum();
    let mut probability: Vec<f64> = l.iter().map(|l| (l - sorted[0]).exp() / total).collect();
    if p.top_p < 1.0 {
        let mut mass = 0.0;
        // The first one always stays; the one that reaches the mass is the last.
        let least = sorted.iter().find(|&&s| {
            mass += (s - sorted[0]).exp() / total;
            mass >= p.top_p
        });
        if let Some(&least) = least {
            (0..l.len()).filter(|&i| l[i] < least).for_each(|i| probability[i] = 0.0);
        }
    }
    probability
}

/// The first index, in vocabulary order, whose inclusive cumulative mass exceeds u · (total mass).
///
/// Also how far, as a share of the total, u is from the nearer edge of that index: in f32 the neighbour may
/// be drawn when this is no larger than the rounding error, and a test has to allow for it.
pub fn draw(kept: &[f64], u: f64) -> (u32, f64) {
    let total: f64 = kept.iter().sum();
    let mut mass = 0.0;
    for (i, weight) in kept.iter().enumerate() {
        if mass + weight > u * total {
            return (i as u32, (u - mass / total).min((mass + weight) / total - u));
        }
        mass += weight;
    }
    // Only rounding at u ~ 1 leads here: the last index that has any mass.
    (kept.iter().rposition(|&w| w > 0.0).unwrap_or(0) as u32, 0.0)
}

/// The token of one row: [`kept`], then [`draw`] with `u = uniform(pcg4d(counter)[0])`, where
/// `counter` is `[step, sample, prompt, seed]`.
pub fn forward(p: Params, logits: &[f64], seen: &[u32], counter: [u32; 4]) -> u32 {
    draw(&kept(p, logits, seen), f64::from(rng::uniform(rng::pcg4d(counter)[0]))).0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Params = Params { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0 };

    fn logs(p: &[f64]) -> Vec<f64> {
        p.iter().map(|p| p.ln()).collect()
    }

    fn near(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{found:?}");
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn filters_by_hand() {
        let l = logs(&[0.1, 0.4, 0.2, 0.3]);
        near(&kept(ALL, &l, &[]), &[0.1, 0.4, 0.2, 0.3]);
        near(&kept(Params { top_k: 2, ..ALL }, &l, &[]), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        near(&kept(Params { top_k: 9, ..ALL }, &l, &[]), &[0.1, 0.4, 0.2, 0.3]);
        near(&kept(Params { top_p: 0.65, ..ALL }, &l, &[]), &[0.0, 0.4, 0.0, 0.3]);
        near(&kept(Params { top_p: 0.75, ..ALL }, &l, &[]), &[0.0, 0.4, 0.2, 0.3]);
        near(&kept(Params { top_p: 0.0, ..ALL }, &l, &[]), &[0.0, 0.4, 0.0, 0.0]);
        // After top-k the mass is renormalised: 4/7 already reaches 0.55.
        near(&kept(Params { top_k: 2, top_p: 0.55, ..ALL }, &l, &[]), &[0.0, 4.0 / 7.0, 0.0, 0.0]);
        near(&kept(Params { temperature: 0.5, top_k: 2, ..ALL }, &l, &[]), &[0.0, 0.64, 0.0, 0.36]);
    }

    #[test]
    fn ties_are_kept_and_the_first_maximum_wins() {
        let l = logs(&[0.2, 0.3, 0.2, 0.3]);
        near(&kept(Params { top_k: 1, ..ALL }, &l, &[]), &[0.0, 0.5, 0.0, 0.5]);
        near(&kept(Params { top_p: 0.2, ..ALL }, &l, &[]), &[0.0, 0.3, 0.0, 0.3]);
        assert_eq!(forward(Params { temperature: 0.0, ..ALL }, &l, &[], [0; 4]), 1);
    }

    #[test]
    fn the_penalty_pulls_both_signs_down_once() {
        let p = Params { repetition_penalty: 2.0, temperature: 0.0, ..ALL };
        assert_eq!(forward(p, &[3.0, 2.0, -1.0], &[0, 0], [0; 4]), 1);
        assert_eq!(forward(p, &[-1.0, -1.5, -9.0], &[0], [0; 4]), 1);
        let once = kept(Params { repetition_penalty: 2.0, ..ALL }, &[2.0, 0.0], &[0, 0, 0]);
        assert!((once[0] / once[1] - 1f64.exp()).abs() < 1e-14);
    }

    #[test]
    fn draws_in_vocabulary_order() {
        let weights = [0.0, 0.25, 0.0, 0.5, 0.25, 0.0];
        for (u, token) in [(0.0, 1), (0.2, 1), (0.25, 3), (0.74, 3), (0.75, 4), (1.0 - 1e-9, 4), (1.0, 4)] {
            assert_eq!(draw(&weights, u).0, token, "{u}");
        }
        assert!((draw(&weights, 0.7).1 - 0.05).abs() < 1e-15);
        let mut counts = [0; 4];
        let l = logs(&[0.1, 0.4, 0.2, 0.3]);
        (0..4000).for_each(|i| counts[forward(ALL, &l, &[], [i, 1, 2, 3]) as usize] += 1);
        assert!(
            counts.iter().zip([400, 1600, 800, 1200]).all(|(c, e): (&i32, i32)| (c - e).abs() < 120),
            "{counts:?}"
        );
    }
}
