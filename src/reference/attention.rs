//! Grouped-query attention over packed tokens: every query reads two ranges of keys, the shared prompt
//! and its own segment.

/// Head counts and the scale of the scores, usually 1/sqrt(head_dim).
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads G; query head h reads key head h / (H/G).
    pub kv_heads: usize,
    /// Size of one head, hd.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f64,
    /// Sliding window: a query sees only this many of its keys, the last ones of its two ranges (prefix
    /// before segment).
    pub window: Option<u32>,
    /// Scores s become cap · tanh(s / cap).
    pub cap: Option<f64>,
}

impl Params {
    /// Index of the first element of head `h` of token `t` in a (tokens, heads, head_dim) slice.
    fn query(self, t: usize, h: usize) -> usize {
        (t * self.heads + h) * self.head_dim
    }

    /// Index of the first element of the key head for query head `h`, in the row of key `s`.
    fn key(self, s: usize, h: usize) -> usize {
        (s * self.kv_heads + h / (self.heads / self.kv_heads)) * self.head_dim
    }

    /// q·k · scale of one pair, capped.
    fn score(self, q: &[f64], k: &[f64], t: usize, h: usize, s: usize) -> f64 {
        let (a, b) = (self.query(t, h), self.key(s, h));
        let score = self.scale * (0..self.head_dim).map(|j| q[a + j] * k[b + j]).sum::<f64>();
        self.cap.map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// d score / d (q·k · scale), from the score.
    fn slope(self, score: f64) -> f64 {
        self.cap.map_or(1.0, |cap| 1.0 - (score / cap).powi(2))
    }

    /// The keys of a query: the last `window` of [prefix_start, prefix_end) and [segment_start, segment_end),
    /// which never overlap.
    fn keys(self, r: [u32; 4]) -> impl Iterator<Item = usize> + Clone {
        let all = (r[0] as usize..r[1] as usize).chain(r[2] as usize..r[3] as usize);
        let count = all.clone().count();
        all.skip(self.window.map_or(0, |window| count.saturating_sub(window as usize)))
    }
}

/// q (T,H,hd), k and v (S,G,hd), ranges (T) -> o (T,H,hd) and lse (T,H) = log Σ exp of the scaled scores.
///
/// A query without keys gives o = 0 and lse = −inf.
pub fn forward(p: Params, q: &[f64], k: &[f64], v: &[f64], ranges: &[[u32; 4]]) -> (Vec<f64>, Vec<f64>) {
    let mut o = vec![0.0; ranges.len() * p.heads * p.head_dim];
    let mut lse = vec![f64::NEG_INFINITY; ranges.len() * p.heads];
    for (t, &range) in ranges.iter().enumerate() {
        for h in 0..p.heads {
            let most = p.keys(range).map(|s| p.score(q, k, t, h, s)).fold(f64::NEG_INFINITY, f64::max);
            if most == f64::NEG_INFINITY {
                continue;
            }
            let sum: f64 = p.keys(range).map(|s| (p.score(q, k, t, h, s) - most).exp()).sum();
            lse[t * p.heads + h] = most + sum.ln();
            for s in p.keys(range) {
                let weight = (p.score(q, k, t, h, s) - most).exp() / sum;
                for j in 0..p.head_dim {
                    o[p.query(t, h) + j] += weight * v[p.key(s, h) + j];
                }
            }
        }
    }
    (o, lse)
}

/// Inputs and outputs of the forward pass: the inputs of [`backward`].
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Queries (T,H,hd).
    pub q: &'a [f64],
    /// Keys (S,G,hd).
    pub k: &'a [f64],
    /// Values (S,G,hd).
    pub v: &'a [f64],
    /// Output (T,H,hd).
    pub o: &'a [f64],
    /// Log-sum-exp of the scores (T,H).
    pub lse: &'a [f64],
    /// Key ranges (T).
    pub ranges: &'a [[u32; 4]],
}

/// delta (T,H) = Σ_j do·o: the part of the softmax's gradient that all keys of a query share.
pub fn delta(p: Params, dout: &[f64], o: &[f64]) -> Vec<f64> {
    let products: Vec<f64> = dout.iter().zip(o).map(|(d, o)| d * o).collect();
    products.chunks_exact(p.head_dim).map(|head| head.iter().sum()).collect()
}

/// (dq, dk, dv) from dout (T,H,hd).
///
/// Uses only the queries' `ranges`, so that a device kernel that loops over keys and uses [`visible_end`] is
/// checked against the definition.
pub fn backward(p: Params, dout: &[f64], saved: Saved<'_>) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let Saved { q, k, v, o, lse, ranges } = saved;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let delta = delta(p, dout, o);
    for (t, &range) in ranges.iter().enumerate() {
        for h in 0..p.heads {
            let (a, row) = (p.query(t, h), t * p.heads + h);
            for s in p.keys(range) {
                let b = p.key(s, h);
                let score = p.score(q, k, t, h, s);
                let weight = (score - lse[row]).exp();
                let dweight: f64 = (0..p.head_dim).map(|j| dout[a + j] * v[b + j]).sum();
                let dscore = p.scale * p.slope(score) * weight * (dweight - delta[row]);
                for j in 0..p.head_dim {
                    dq[a + j] += dscore * k[b + j];
                    dk[b + j] += dscore * q[a + j];
                    dv[b + j] += weight * dout[a + j];
                }
            }
        }
    }
    (dq, dk, dv)
}

/// For every key t of a training batch (T): the end of the queries t..end that see it without a window,
/// computed from the ranges of all queries.
///
/// Fails, naming the key, if the queries that see a key are not consecutive from t on, or if a query sees a
/// key outside of the batch.
pub fn visible_end(ranges: &[[u32; 4]]) -> Result<Vec<u32>, String> {
    let mut ends = Vec::with_capacity(ranges.len());
    let mut seen_by = vec![Vec::new(); ranges.len()];
    for (t, &range) in ranges.iter().enumerate() {
        for s in (range[0] as usize..range[1] as usize).chain(range[2] as usize..range[3] as usize) {
            seen_by.get_mut(s).ok_or(format!("query {t} sees key {s} of {}", ranges.len()))?.push(t);
        }
    }
    for (s, queries) in seen_by.iter().enumerate() {
        if queries.iter().enumerate().any(|(i, &t)| t != s + i) {
            return Err(format!(
                "key {s} is seen by the queries {queries:?}, which are not consecutive from {s} on"
            ));
        }
        ends.push((s + queries.len()) as u32);
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    const P: Params = Params { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.8, window: None, cap: None };
    /// A prompt of 2 tokens with responses of 2 and 1, then a plain sequence of 2.
    const RANGES: [[u32; 4]; 7] =
        [[0, 0, 0, 1], [0, 0, 0, 2], [0, 2, 2, 3], [0, 2, 2, 4], [0, 2, 4, 5], [5, 5, 5, 6], [5, 5, 5, 7]];

    #[test]
    fn one_key_is_copied_and_no_key_is_zero() {
        let (q, k, v) = (values(1, 24), values(2, 6), values(3, 6));
        let (o, lse) = forward(P, &q, &k, &v, &[[0, 0, 0, 1], [0, 0, 1, 1]]);
        assert_eq!(o[..12], [&v[..3], &v[..3], &v[3..], &v[3..]].concat());
        assert_eq!((&o[12..], &lse[4..]), (&[0.0; 12][..], &[f64::NEG_INFINITY; 4][..]));
        assert!((lse[3] - P.scale * finite::dot(&q[9..12], &k[3..])).abs() < 1e-15);
    }

    #[test]
    fn two_ranges_equal_one_dense_softmax() {
        let (q, k, v) = (values(1, 12), values(2, 30), values(3, 30));
        let (o, lse) = forward(P, &q, &k, &v, &[[0, 2, 3, 5]]);
        // Head 2 reads key head 1; keys 0, 1, 3, 4.
        let weight = |s: usize| (P.scale * finite::dot(&q[6..9], &k[s * 6 + 3..][..3])).exp();
        let total: f64 = [0, 1, 3, 4].map(weight).iter().sum();
        let expected: f64 = [0, 1, 3, 4].map(|s| weight(s) * v[s * 6 + 4]).iter().sum::<f64>() / total;
        assert!((o[7] - expected).abs() < 1e-14 && (lse[2] - total.ln()).abs() < 1e-14);
    }

    #[test]
    fn a_window_hides_the_first_keys() {
        let (q, k, v) = (values(1, 12), values(2, 30), values(3, 30));
        let windowed = |window| forward(Params { window: Some(window), ..P }, &q, &k, &v, &[[0, 2, 3, 5]]);
        assert_eq!(windowed(4), forward(P, &q, &k, &v, &[[0, 2, 3, 5]]));
        assert_eq!(windowed(3), forward(P, &q, &k, &v, &[[1, 2, 3, 5]]));
        assert_eq!(windowed(1), forward(P, &q, &k, &v, &[[0, 0, 4, 5]]));
    }

    #[test]
    fn gradients() {
        let limited = Params { window: Some(2), cap: Some(0.4), ..P };
        [P, limited].into_iter().for_each(gradients_of);
    }

    fn gradients_of(p: Params) {
        let (q, k, v, c) = (values(1, 84), values(2, 42), values(3, 42), values(4, 84));
        let (o, lse) = forward(p, &q, &k, &v, &RANGES);
        let saved = Saved { q: &q, k: &k, v: &v, o: &o, lse: &lse, ranges: &RANGES };
        let (dq, dk, dv) = backward(p, &c, saved);
        finite::check("dq", &q, &dq, |q| finite::dot(&c, &forward(p, q, &k, &v, &RANGES).0));
        finite::check("dk", &k, &dk, |k| finite::dot(&c, &forward(p, &q, k, &v, &RANGES).0));
        finite::check("dv", &v, &dv, |v| finite::dot(&c, &forward(p, &q, &k, v, &RANGES).0));
    }

    #[test]
    fn visible_end_is_a_run_or_an_error() {
        assert_eq!(visible_end(&RANGES), Ok(vec![5, 5, 4, 4, 5, 7, 7]));
        let mut gap = RANGES;
        gap[3][1] = 0;
        assert!(visible_end(&gap).unwrap_err().contains("key 0"));
        gap[3] = [0, 2, 2, 9];
        assert!(visible_end(&gap).unwrap_err().contains("sees key 7"));
    }
}
