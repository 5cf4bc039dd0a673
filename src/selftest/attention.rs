//! Attention over packed batches with shared prompts, forward and backward, and over a sampler's cache.

use super::fixture::{Output, floats, spread, values, words};
use super::{Check, Depth, Failure, Outcome, check};
use crate::gpu::{Gpu, Recorder, Tensor, Tier};
use crate::kernels::Heads;
use crate::kernels::attention::{self, CAPPED_HEAD_DIMS, HEAD_DIMS, Operands, Saved, Shape};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("attention_forward", forward),
        check!("attention_backward", backward),
        check!("attention_over_a_cache", over_a_cache),
        check!("attention_windows", windows),
        check!("attention_capped", capped),
    ]
}

/// Query heads, kv heads, head_dim, and the factor on q. Large scores make the running maximum change.
const SHAPES: [(usize, usize, usize, f64); 7] = [
    (4, 2, 8, 8.0),
    (3, 1, 64, 1.0),
    (1, 1, 4, 1.0),
    (9, 3, 16, 1.0),
    (2, 2, 96, 4.0),
    (6, 2, 4, 32.0),
    (8, 1, 16, 2.0),
];

/// Groups of a batch: the prompt's length and those of its responses. A plain sequence is a prompt without
/// responses.
const BATCHES: [&[(u32, &[u32])]; 3] = [
    &[(5, &[3, 1, 7]), (1, &[2, 2]), (9, &[])],
    &[(1, &[])],
    &[(40, &[17, 30, 1, 1, 9]), (13, &[64]), (0, &[5, 6])],
];

/// Lengths near the sizes of a tile of the portable kernels: 64 rows (a query and one of the heads that share
/// a kv head), and 8, 16, 24 or 32 keys or queries.
const EDGES: [&[(u32, &[u32])]; 7] = [
    &[(33, &[])],
    &[(63, &[])],
    &[(64, &[])],
    &[(65, &[])],
    &[(4, &[]), (7, &[]), (1, &[])],
    &[(33, &[31, 2, 64])],
    &[(65, &[15, 17]), (24, &[8, 40])],
];

/// The key ranges of every token of a packed batch.
fn ranges(batch: &[(u32, &[u32])]) -> Vec<[u32; 4]> {
    let mut all: Vec<[u32; 4]> = Vec::new();
    for &(prompt, responses) in batch {
        let start = all.len() as u32;
        all.extend((start..start + prompt).map(|t| [0, 0, start, t + 1]));
        for &length in responses {
            let first = all.len() as u32;
            all.extend((first..first + length).map(|t| [start, start + prompt, first, t + 1]));
        }
    }
    all
}

/// The positions of a packed batch's tokens: a response continues from its prompt.
fn positions(ranges: &[[u32; 4]]) -> Vec<u32> {
    ranges.iter().map(|r| r[1] - r[0] + r[3] - r[2] - 1).collect()
}

/// Limits on the keys that a query sees, and on its scores.
#[derive(Clone, Copy, Default)]
struct Limits {
    window: Option<usize>,
    cap: Option<f32>,
}

/// One layer on one batch: the inputs, and the reference's results.
struct Case {
    shape: Shape,
    params: reference::attention::Params,
    ranges: Vec<[u32; 4]>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
    what: String,
}

impl Case {
    fn new(
        (heads, kv_heads, head_dim, size): (usize, usize, usize, f64),
        ranges: Vec<[u32; 4]>,
        keys: usize,
        Limits { window, cap }: Limits,
    ) -> Self {
        let queries = ranges.len();
        let scale = 1.0 / (head_dim as f64).sqrt();
        let seen = ranges.iter().map(|r| r[1] - r[0] + r[3] - r[2]).sum::<u32>() as usize;
        let (mean_keys, dense) = (seen / queries, keys == queries);
        let shape = Shape {
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            scale: scale as f32,
            window,
            cap,
            mean_keys,
            dense,
        };
        let (window, cap) = (window.map(|window| window as u32), cap.map(f64::from));
        let params = reference::attention::Params { heads, kv_heads, head_dim, scale, window, cap };
        let q = values(1, queries * heads * head_dim, size);
        let (k, v) = (values(2, keys * kv_heads * head_dim, 1.0), values(3, keys * kv_heads * head_dim, 1.0));
        let (o, lse) = reference::attention::forward(params, &q, &k, &v, &ranges);
        let what = format!(
            "T={queries} S={keys} H={heads} G={kv_heads} head_dim={head_dim} |q|<{size} window={window:?} \
             cap={cap:?}"
        );
        Self { shape, params, ranges, q, k, v, o, lse, what }
    }

    /// The same case as one whose keys are all valid numbers.
    fn dense(mut self) -> Self {
        self.shape.dense = true;
        self
    }

    /// The same case with NaN in every slot that no query sees, as in a cache whose buffers are reused.
    fn spoilt(mut self) -> Self {
        let width = self.widths().1;
        let seen = |slot: u32| {
            self.ranges.iter().any(|r| (r[0]..r[1]).contains(&slot) || (r[2]..r[3]).contains(&slot))
        };
        for slot in (0..self.k.len() / width).filter(|&slot| !seen(slot as u32)) {
            self.k[slot * width..][..width].fill(f64::NAN);
            self.v[slot * width..][..width].fill(f64::NAN);
        }
        self
    }

    async fn forward(&self, gpu: &Gpu) -> Outcome {
        let (o, lse) = (Output::fresh(gpu, self.o.len())?, Output::fresh(gpu, self.lse.len())?);
        let (q, k, v) = (floats(gpu, &self.q)?, floats(gpu, &self.k)?, floats(gpu, &self.v)?);
        let (q_width, kv_width) = self.widths();
        let of = |data, stride| Heads::new(data, stride, self.shape.head_dim);
        let operands = Operands { q: of(&q, q_width), k: of(&k, kv_width), v: of(&v, kv_width) };
        let ranges = words(gpu, self.ranges.as_flattened())?;
        let mut rec = Recorder::new(gpu);
        attention::forward(&mut rec, operands, &ranges, &o.tensor, &lse.tensor, self.shape)?;
        rec.submit();
        o.expect(gpu, format!("o, {}", self.what), &self.o).await?;
        lse.expect(gpu, format!("lse, {}", self.what), &self.lse).await
    }

    /// Elements of a query's row and of a key's row.
    fn widths(&self) -> (usize, usize) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        (heads * head_dim, kv_heads * head_dim)
    }

    /// Queries, keys and values as columns of one row, among other elements that must not change.
    fn beside(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let (q_width, kv_width) = self.widths();
        let rows = q.chunks(q_width).zip(k.chunks(kv_width).zip(v.chunks(kv_width)));
        let rows: Vec<f64> = rows.flat_map(|(q, (k, v))| [q, k, v].concat()).collect();
        spread(&rows, q_width + 2 * kv_width, self.place(), 0.5)
    }

    fn place(&self) -> (usize, usize) {
        let (q_width, kv_width) = self.widths();
        (8, q_width + 2 * kv_width + 4)
    }

    fn columns<'a>(&self, data: &'a Tensor) -> Operands<'a> {
        let (q_width, kv_width) = self.widths();
        let q = Heads { data, at: self.place().0, stride: self.place().1, head: self.shape.head_dim };
        Operands { q, k: q.from(q_width), v: q.from(q_width + kv_width) }
    }

    async fn backward(&self, gpu: &Gpu) -> Outcome {
        let dout = values(4, self.o.len(), 1.0);
        let saved = reference::attention::Saved {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            o: &self.o,
            lse: &self.lse,
            ranges: &self.ranges,
        };
        let (dq, dk, dv) = reference::attention::backward(self.params, &dout, saved);
        let ends = reference::attention::visible_end(&self.ranges).map_err(Failure)?;
        let places = ends.iter().zip(positions(&self.ranges));
        let tokens: Vec<u32> = places.flat_map(|(&end, at)| [u32::MAX, at, u32::MAX, end]).collect();
        let mut stats = self.lse.clone();
        stats.resize(2 * self.lse.len(), f64::NAN);
        let stats = Output::holding(gpu, &stats)?;
        let (qkv, o) = (floats(gpu, &self.beside(&self.q, &self.k, &self.v))?, floats(gpu, &self.o)?);
        let (ranges, tokens, d_o) =
            (words(gpu, self.ranges.as_flattened())?, words(gpu, &tokens)?, floats(gpu, &dout)?);
        let nan = |gradient: &[f64]| vec![f64::NAN; gradient.len()];
        let dqkv = Output::holding(gpu, &self.beside(&nan(&dq), &nan(&dk), &nan(&dv)))?;
        let mut rec = Recorder::new(gpu);
        let operands = self.columns(&qkv);
        let saved = Saved { operands, o: &o, stats: &stats.tensor, ranges: &ranges, tokens: &tokens };
        attention::backward(&mut rec, saved, &d_o, &dqkv.tensor, &dqkv.tensor, self.shape)?;
        rec.submit();
        let mut rows = self.lse.clone();
        rows.extend(reference::attention::delta(self.params, &dout, &self.o));
        stats.expect(gpu, format!("stats, {}", self.what), &rows).await?;
        dqkv.expect(gpu, format!("dq, dk, dv, {}", self.what), &self.beside(&dq, &dk, &dv)).await?;
        Ok(())
    }
}

fn packed(gpu: &Gpu, depth: Depth) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |shape, batch| {
        let ranges = ranges(batch);
        let keys = ranges.len();
        cases.push(Case::new(shape, ranges, keys, Limits::default()));
    };
    for &shape in depth.of(&SHAPES) {
        BATCHES.into_iter().for_each(|batch| add(shape, batch));
    }
    if depth == Depth::Full {
        for shape in [SHAPES[2], SHAPES[3], SHAPES[6]] {
            EDGES.into_iter().for_each(|batch| add(shape, batch));
        }
        head_dims(gpu).iter().for_each(|&dim| add((3, 1, dim, 2.0), BATCHES[2]));
    }
    cases
}

/// The head sizes to check besides those of [`SHAPES`]: all of them, except on software adapters, which are
/// slow to compile each one.
fn head_dims(gpu: &Gpu) -> &'static [usize] {
    if gpu.tier() == Tier::Software { &[40] } else { &HEAD_DIMS }
}

async fn forward(gpu: &Gpu, depth: Depth) -> Outcome {
    for case in packed(gpu, depth) {
        case.forward(gpu).await?;
    }
    Ok(())
}

async fn backward(gpu: &Gpu, depth: Depth) -> Outcome {
    for case in packed(gpu, depth) {
        case.backward(gpu).await?;
    }
    Ok(())
}

/// Windows that hide a part of a prompt from its answers, all of the prompt, or everything but a query's own
/// key.
async fn windows(gpu: &Gpu, depth: Depth) -> Outcome {
    for &shape in depth.of(&SHAPES) {
        for batch in [BATCHES[0], BATCHES[2], EDGES[5]] {
            for window in [1, 3, 7, 33] {
                let (ranges, limits) = (ranges(batch), Limits { window: Some(window), cap: None });
                let keys = ranges.len();
                let case = Case::new(shape, ranges, keys, limits);
                case.forward(gpu).await?;
                case.backward(gpu).await?;
            }
        }
    }
    Ok(())
}

/// Scores near the cap, and far beyond it, where the derivative is almost 0.
async fn capped(gpu: &Gpu, depth: Depth) -> Outcome {
    // Software adapters are slow to compile large heads.
    let dims = if gpu.tier() == Tier::Software { &CAPPED_HEAD_DIMS[..1] } else { &CAPPED_HEAD_DIMS[..] };
    for &dim in depth.of(dims) {
        for (size, cap) in [(2.0, 0.5), (32.0, 3.0)] {
            let (ranges, limits) = (ranges(BATCHES[2]), Limits { window: Some(20), cap: Some(cap) });
            let keys = ranges.len();
            let case = Case::new((4, 2, dim, size), ranges, keys, limits);
            case.forward(gpu).await?;
            case.backward(gpu).await?;
            // Key ranges as in a sampler's cache.
            let few = vec![[0, 20, 40, 41], [0, 20, 50, 57], [20, 33, 60, 60]];
            Case::new((4, 2, dim, size), few, 100, limits).spoilt().forward(gpu).await?;
        }
    }
    Ok(())
}

/// One new token per row: prompts shared by rows, a segment of the cache for each row, and more slots than
/// rows.
async fn over_a_cache(gpu: &Gpu, depth: Depth) -> Outcome {
    let few = vec![
        [0, 20, 40, 41],
        [0, 20, 50, 57],
        [20, 33, 60, 60],
        [20, 33, 70, 75],
        [33, 34, 80, 99],
        [0, 0, 99, 100],
        [0, 20, 41, 50],
    ];
    // Prompts that begin and end inside a tile, a gap between them, and neighbouring answers of different
    // lengths.
    let prompts = [[0, 33], [33, 34], [40, 40], [50, 114], [33, 34]];
    let segment = |row: u32| (120 + row * 40, 120 + row * 40 + (row * 17) % 40);
    let many: Vec<[u32; 4]> = (0..70)
        .map(|row| {
            let ([start, end], (first, last)) = (prompts[row as usize / 15], segment(row));
            [start, end, first, last.max(first + 1)]
        })
        .collect();
    // Prompts of 40 tokens, of which the first 30 were computed before.
    let rest: Vec<[u32; 4]> = (0..60)
        .map(|row| {
            let start = row / 10 * 40;
            [start, start + 30, start + 30, start + 31 + row % 10]
        })
        .collect();
    for &shape in depth.of(&SHAPES) {
        for limits in [Limits::default(), Limits { window: Some(21), cap: None }] {
            Case::new(shape, rest.clone(), 240, limits).dense().forward(gpu).await?;
            Case::new(shape, few.clone(), 100, limits).spoilt().forward(gpu).await?;
            Case::new(shape, many.clone(), 120 + 70 * 40, limits).spoilt().forward(gpu).await?;
            Case::new(shape, vec![[0, 100, 0, 0]], 100, limits).forward(gpu).await?;
        }
    }
    if depth == Depth::Full {
        for &dim in head_dims(gpu) {
            Case::new((3, 1, dim, 2.0), many.clone(), 120 + 70 * 40, Limits::default())
                .spoilt()
                .forward(gpu)
                .await?;
        }
    }
    Ok(())
}
