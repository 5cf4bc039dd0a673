//! Samples a token from one row of logits: applies the filters of Hugging Face's generation in the same
//! order, then draws a token.

use crate::rng;

/// Settings of the filters.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Divides the logits; 0 takes the largest logit without sampling.
    pub temperature: f64,
    /// Keep the k largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of the largest probabilities whose mass reaches this; 1 keeps all.
    pub top_p: f64,
    /// For tokens already seen: divides positive logits and multiplies the others; 1 changes nothing.
    pub repetition_penalty: f64,
}

/// The kept probabilities (vocab), zero where filtered out, before they are scaled to sum to one.
///
/// `seen` lists the tokens that get the repetition penalty. A token that is listed more than once gets it
/// once. Tokens that tie with the last one kept are kept too. At temperature 0 the whole mass is on the
/// largest logit, or on the first of several equal ones.
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

/// The first token, in vocabulary order, whose inclusive cumulative mass exceeds u · (total mass).
///
/// The second result is the distance of u from the nearer edge of that token's interval, as a share of the
/// total mass. If it is no larger than the rounding error, an f32 implementation may sample the neighbouring
/// token, and a test has to allow for that.
pub fn draw(kept: &[f64], u: f64) -> (u32, f64) {
    let total: f64 = kept.iter().sum();
    let mut mass = 0.0;
    for (i, weight) in kept.iter().enumerate() {
        if mass + weight > u * total {
            return (i as u32, (u - mass / total).min((mass + weight) / total - u));
        }
        mass += weight;
    }
    // Reached only through rounding at u close to 1: take the last token that has any mass.
    (kept.iter().rposition(|&w| w > 0.0).unwrap_or(0) as u32, 0.0)
}

/// The token of one row: [`kept`], then [`draw`] with `u = uniform(pcg4d(counter)[0])`, where
/// `counter` is `[step, sample, prompt, seed]`.
pub fn forward(p: Params, logits: &[f64], seen: &[u32], counter: [u32; 4]) -> u32 {
    draw(&kept(p, logits, seen), f64::from(rng::uniform(rng::pcg4d(counter)[0]))).0
}

/// Settings of a sampler.
#[derive(Clone, Debug)]
pub struct SamplingParams {
    /// The filters.
    pub filters: Params,
    /// The most tokens in an answer.
    pub max_new_tokens: u32,
    /// Random seed: part of the counter.
    pub seed: u32,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

/// The value of a sampled token in a row that has already ended.
pub const NONE: u32 = u32::MAX;

/// Samples with u this close to an edge of a token's interval, as a share of the mass, are not compared: in
/// f32, u may be on the other side.
const EDGE: f64 = 2e-5;

/// One row of a sampler before, or after, a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// `(vocab)`
    pub logits: Vec<f64>,
    /// Ids of the prompt and the answer so far, in ascending order.
    pub seen: Vec<u32>,
    /// Prompt, sample, step, and 1 if the answer has ended.
    pub state: [u32; 4],
    /// Id of the last token, its position, its slot in the cache, unused.
    pub token: [u32; 4],
    /// The ranges of keys that the last token sees; the last number is the end of the answer's keys.
    pub range: [u32; 4],
    /// The token that this step sampled.
    pub drawn: u32,
}

impl Sequence {
    /// Like [`kept`], with `nudge` added to top_p if top_p filters at all.
    pub fn kept(&self, settings: &SamplingParams, nudge: f64) -> Vec<f64> {
        let top_p = settings.filters.top_p;
        let top_p = if top_p < 1.0 { top_p + nudge } else { top_p };
        kept(Params { top_p, ..settings.filters }, &self.logits, &self.seen)
    }

    /// The values that a step writes in place of the logits. At temperature 0 they are the logits with the
    /// repetition penalty. Otherwise they are the tokens' weights as shares of the largest weight.
    pub fn weights(&self, settings: &SamplingParams) -> Vec<f64> {
        let Params { temperature, repetition_penalty, .. } = settings.filters;
        let mut logits = self.logits.clone();
        for &id in &self.seen {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        }
        if temperature == 0.0 {
            return logits;
        }
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        logits.iter().map(|logit| ((logit - most) / temperature).exp()).collect()
    }

    /// The sampled token, or `None` if it depends on f32 rounding.
    pub fn draw(&self, settings: &SamplingParams) -> Option<u32> {
        let set = |nudge| self.kept(settings, nudge).iter().map(|&p| p > 0.0).collect::<Vec<_>>();
        let [prompt, sample, step, _] = self.state;
        let u = rng::uniform(rng::pcg4d([step, sample, prompt, settings.seed])[0]);
        let (id, edge) = draw(&self.kept(settings, 0.0), f64::from(u));
        let clear = settings.filters.temperature == 0.0 || (edge > EDGE && set(-EDGE) == set(EDGE));
        clear.then_some(id)
    }

    /// The row after `id` was sampled.
    pub fn after(&self, id: u32, settings: &SamplingParams) -> Self {
        let mut row = self.clone();
        let [prompt, sample, step, finished] = self.state;
        row.drawn = if finished == 1 { NONE } else { id };
        if finished == 1 {
            return row;
        }
        let ended = settings.ends.contains(&id) || step + 1 >= settings.max_new_tokens;
        row.state = [prompt, sample, step + 1, u32::from(ended)];
        if ended {
            return row;
        }
        if settings.filters.repetition_penalty != 1.0 && !row.seen.contains(&id) {
            row.seen.push(id);
            row.seen.sort_unstable();
        }
        row.token = [id, self.token[1] + 1, self.token[2] + 1, 0];
        row.range[3] += 1;
        row
    }
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
