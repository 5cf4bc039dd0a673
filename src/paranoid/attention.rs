//! Attention: compares some queries with all of their keys, or some keys with all of the queries that see
//! them.
//!
//! A weight is the exponential of a score, so the absolute error of a score is the relative error of its
//! weight. A score is a sum of products. The sum of their absolute values is at most the product of the norms
//! of the two vectors.

use super::{Bound, Output, UNIT, Witnessed, of_sum};
use crate::kernels::attention::{DeltaParams, Params};
use crate::reference::attention::{self, Saved};

/// Number of queries or keys that are compared.
const PICKED: usize = 12;

struct Layer {
    p: Params,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

/// The binding numbers of a kernel's tensors.
struct Places {
    q: usize,
    k: usize,
    v: usize,
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn largest(vector: &[f64]) -> f64 {
    vector.iter().fold(0.0, |most, x| most.max(x.abs()))
}

impl Layer {
    fn of(seen: &Witnessed) -> Self {
        let p: Params = seen.params();
        Self { heads: p.heads as usize, kv_heads: p.kv_heads as usize, dim: seen.constant("HEAD_DIM"), p }
    }

    fn params(&self, window: Option<u32>) -> attention::Params {
        attention::Params {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale: f64::from(self.p.scale),
            window,
            cap: Some(f64::from(self.p.cap)).filter(|&cap| cap != 0.0),
        }
    }

    fn window(&self) -> Option<u32> {
        Some(self.p.window).filter(|&window| window != u32::MAX)
    }

    fn queries(&self) -> usize {
        self.p.queries as usize
    }

    fn q_at(&self, t: usize, head: usize) -> usize {
        4 * (self.p.q_at as usize + t * self.p.q_stride as usize + head * self.p.q_head as usize)
    }

    fn kv_at(&self, start: u32, s: usize, head: usize) -> usize {
        4 * (start as usize + s * self.p.kv_stride as usize + head * self.p.kv_head as usize)
    }

    /// The queries of a token, one head after another.
    fn q(&self, q: &Bound, t: usize) -> Vec<f64> {
        (0..self.heads).flat_map(|head| q.range(self.q_at(t, head), self.dim)).collect()
    }

    fn kv(&self, of: &Bound, start: u32, s: usize) -> Vec<f64> {
        (0..self.kv_heads).flat_map(|head| of.range(self.kv_at(start, s, head), self.dim)).collect()
    }

    fn head<'a>(&self, row: &'a [f64], head: usize) -> &'a [f64] {
        &row[head * self.dim..][..self.dim]
    }

    /// The relative error of the weights of a query's keys, and of a sum over `count` keys or queries.
    fn share(&self, q: &[f64], longest_key: f64, count: usize) -> f64 {
        1e-5 + of_sum(count) + 16.0 * UNIT * f64::from(self.p.scale).abs() * length(q) * longest_key
    }

    /// Picks some queries, and copies the keys and values that they see; the ranges index that copy.
    fn pick(&self, seen: &Witnessed, at: &Places, ranges: usize) -> Picked {
        let tokens = seen.pick(self.queries(), PICKED);
        let mut picked = Picked::default();
        for &t in &tokens {
            let [a, b, c, d] = seen.bound[ranges].four(t).map(|end| end as usize);
            let slots = seen.bound[at.k].len;
            assert!(a <= b && c <= d && b.max(d) <= slots, "invalid keys {a}..{b} and {c}..{d} of query {t}");
            let first = picked.k.len() / (self.kv_heads * self.dim);
            for s in (a..b).chain(c..d) {
                picked.k.extend(self.kv(&seen.bound[at.k], self.p.k_at, s));
                picked.v.extend(self.kv(&seen.bound[at.v], self.p.v_at, s));
            }
            picked.q.extend(self.q(&seen.bound[at.q], t));
            let [first, of_prefix, of_segment] = [first, b - a, d - c].map(|count| count as u32);
            let middle = first + of_prefix;
            picked.ranges.push([first, middle, middle, middle + of_segment]);
        }
        picked.tokens = tokens;
        picked
    }

    /// For one head of a query: the largest norm and the largest element among its keys, then among its
    /// values.
    fn sizes(&self, picked: &Picked, i: usize, head: usize) -> [[f64; 2]; 2] {
        let [first, .., end] = picked.ranges[i];
        let own = head / (self.heads / self.kv_heads);
        [&picked.k, &picked.v].map(|all| {
            let rows = (first as usize..end as usize).map(|s| self.head(all, s * self.kv_heads + own));
            rows.fold([0.0f64; 2], |[long, large], row| [long.max(length(row)), large.max(largest(row))])
        })
    }
}

#[derive(Default)]
struct Picked {
    tokens: Vec<usize>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    ranges: Vec<[u32; 4]>,
}

impl Picked {
    /// The number of keys of the query `i`.
    fn keys(&self, i: usize) -> usize {
        let [first, .., end] = self.ranges[i];
        (end - first) as usize
    }
}

/// Bindings: q, k, v, ranges, o, stats.
pub(super) fn forward(seen: &Witnessed) -> Vec<Output> {
    let layer = Layer::of(seen);
    let (heads, dim) = (layer.heads, layer.dim);
    let picked = layer.pick(seen, &Places { q: 0, k: 1, v: 2 }, 3);
    let (o, lse) =
        attention::forward(layer.params(layer.window()), &picked.q, &picked.k, &picked.v, &picked.ranges);
    let rows = layer.queries() * heads;
    let (mut of_o, mut of_lse) = (Output::first(4, rows * dim), Output::first(5, rows));
    for (i, t) in picked.tokens.iter().enumerate() {
        for head in 0..heads {
            let [[long, _], [_, large]] = layer.sizes(&picked, i, head);
            let share = layer.share(layer.head(&picked.q, i * heads + head), long, picked.keys(i));
            let expected = layer.head(&o, i * heads + head);
            of_o.row((t * heads + head) * dim, expected, |_| share * large);
            of_lse.near(t * heads + head, lse[i * heads + head], share);
        }
    }
    vec![of_o, of_lse]
}

/// Bindings: o, do, stats.
pub(super) fn delta(seen: &Witnessed) -> Vec<Output> {
    let p: DeltaParams = seen.params();
    let (rows, dim) = (p.rows as usize, 4 * p.vectors as usize);
    // Only the head size matters here.
    let params =
        attention::Params { heads: 1, kv_heads: 1, head_dim: dim, scale: 1.0, window: None, cap: None };
    let mut output = Output::part(2, rows..2 * rows);
    for row in seen.pick_rows(rows, dim) {
        let [o, d_o] = [0, 1].map(|binding| seen.bound[binding].range(row * dim, dim));
        let size: f64 = o.iter().zip(&d_o).map(|(a, b)| (a * b).abs()).sum();
        output.near(rows + row, attention::delta(params, &d_o, &o)[0], 32.0 * UNIT * size);
    }
    vec![output]
}

/// An output with this delta. The backward pass depends on the output only through its delta.
fn with_delta(d_o: &[f64], delta: f64) -> Vec<f64> {
    let square: f64 = d_o.iter().map(|d| d * d).sum();
    d_o.iter().map(|d| if square > 0.0 { d * delta / square } else { 0.0 }).collect()
}

/// Bindings: q, k, v, ranges, stats, do, dq.
pub(super) fn dq(seen: &Witnessed) -> Vec<Output> {
    let layer = Layer::of(seen);
    let (heads, dim) = (layer.heads, layer.dim);
    let picked = layer.pick(seen, &Places { q: 0, k: 1, v: 2 }, 3);
    let (stats, rows) = (&seen.bound[4], layer.queries() * heads);
    let (mut d_o, mut o, mut lse, mut deltas) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for t in &picked.tokens {
        for head in 0..heads {
            let row = t * heads + head;
            let own = seen.bound[5].range(row * dim, dim);
            deltas.push(stats.at(rows + row));
            o.extend(with_delta(&own, stats.at(rows + row)));
            lse.push(stats.at(row));
            d_o.extend(own);
        }
    }
    let Picked { tokens, q, k, v, ranges } = &picked;
    let saved = Saved { q, k, v, o: &o, lse: &lse, ranges };
    let (dq, ..) = attention::backward(layer.params(layer.window()), &d_o, saved);
    let all = (0..layer.queries()).flat_map(|t| (0..heads).map(move |head| (t, head)));
    let place = |t, head| layer.q_at(t, head);
    let mut output = Output::new(6, all.map(|(t, head)| place(t, head)..place(t, head) + dim).collect());
    for (i, &t) in tokens.iter().enumerate() {
        for head in 0..heads {
            let row = i * heads + head;
            let [[long, large], [long_value, _]] = layer.sizes(&picked, i, head);
            let share = layer.share(layer.head(q, row), long, picked.keys(i));
            let size = length(layer.head(&d_o, row)) * long_value + deltas[row].abs();
            let slack = f64::from(layer.p.scale).abs() * share * size * large;
            output.row(place(t, head), layer.head(&dq, row), |_| slack);
        }
    }
    vec![output]
}

/// Bindings: q, k, tokens, stats, do, and the gradient; for the gradient of keys also v.
pub(super) fn dkv(seen: &Witnessed) -> Vec<Output> {
    let values = seen.has("DV");
    // The gradient of values does not depend on the values.
    let places = Places { q: 0, k: 1, v: if values { 1 } else { 6 } };
    by_key(seen, &places, [2, 3, 4, 5], [!values, values])
}

/// Bindings: q, k, v, tokens, stats, do, and the gradients, or one of them.
pub(super) fn dkv_tiled(seen: &Witnessed) -> Vec<Output> {
    by_key(seen, &Places { q: 0, k: 1, v: 2 }, [3, 4, 5, 6], ["DV", "DK"].map(|other| !seen.has(other)))
}

/// Checks each picked key separately, with the queries that see it: those from the key to its end that are
/// within the window.
fn by_key(
    seen: &Witnessed,
    places: &Places,
    [tokens, stats, d_o, out]: [usize; 4],
    [of_keys, of_values]: [bool; 2],
) -> Vec<Output> {
    let layer = Layer::of(seen);
    let (heads, dim, queries) = (layer.heads, layer.dim, layer.queries());
    let shared_by = heads / layer.kv_heads;
    let stats = &seen.bound[stats];
    let starts = [(of_keys, layer.p.k_at), (of_values, layer.p.v_at)];
    let own = starts.into_iter().filter(|(own, _)| *own);
    let written = own.flat_map(|(_, start)| {
        let layer = &layer;
        let all = (0..queries).flat_map(move |s| (0..layer.kv_heads).map(move |head| (s, head)));
        all.map(move |(s, head)| layer.kv_at(start, s, head)..layer.kv_at(start, s, head) + dim)
    });
    let mut output = Output::new(out, written.collect());
    for s in seen.pick(queries, PICKED) {
        let [_, position, _, end] = seen.bound[tokens].four(s);
        let near = |t: &usize| seen.bound[tokens].four(*t)[1].wrapping_sub(position) < layer.p.window;
        let readers: Vec<usize> = (s..end as usize).filter(near).collect();
        let k = layer.kv(&seen.bound[places.k], layer.p.k_at, s);
        let v = layer.kv(&seen.bound[places.v], layer.p.v_at, s);
        let q: Vec<f64> = readers.iter().flat_map(|&t| layer.q(&seen.bound[places.q], t)).collect();
        let rows = || readers.iter().flat_map(|t| (0..heads).map(move |head| t * heads + head));
        let douts: Vec<f64> = rows().flat_map(|row| seen.bound[d_o].range(row * dim, dim)).collect();
        let lse: Vec<f64> = rows().map(|row| stats.at(row)).collect();
        // The second half of the statistics.
        let deltas: Vec<f64> = rows().map(|row| stats.at(queries * heads + row)).collect();
        let o: Vec<f64> =
            douts.chunks(dim).zip(&deltas).flat_map(|(own, &delta)| with_delta(own, delta)).collect();
        let ranges = vec![[0, 1, 0, 0]; readers.len()];
        let saved = Saved { q: &q, k: &k, v: &v, o: &o, lse: &lse, ranges: &ranges };
        let (_, dk, dv) = attention::backward(layer.params(None), &douts, saved);
        // The tolerances: for each query that sees the key, the error of its weight times the sizes of its
        // factors.
        let mut slacks = vec![[0.0; 2]; layer.kv_heads];
        for (i, (q, own)) in q.chunks(dim).zip(douts.chunks(dim)).enumerate() {
            let kv_head = i % heads / shared_by;
            let (key, value) = (layer.head(&k, kv_head), layer.head(&v, kv_head));
            let score: f64 = f64::from(layer.p.scale) * q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
            let capped = layer.params(None).cap.map_or(score, |cap| cap * (score / cap).tanh());
            let weight = layer.share(q, length(key), readers.len() * shared_by) * (capped - lse[i]).exp();
            let size = length(own) * length(value) + deltas[i].abs();
            slacks[kv_head][0] += f64::from(layer.p.scale).abs() * weight * size * largest(q);
            slacks[kv_head][1] += weight * largest(own);
        }
        for (which, (own, start)) in starts.into_iter().enumerate() {
            let gradient = [&dk, &dv][which];
            for head in (0..layer.kv_heads).filter(|_| own) {
                let slack = slacks[head][which];
                output.row(layer.kv_at(start, s, head), layer.head(gradient, head), |_| slack);
            }
        }
    }
    vec![output]
}
