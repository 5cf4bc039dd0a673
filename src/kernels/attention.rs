//! Causal grouped-query attention over two key ranges per query, forward and backward, without a T×T matrix.
//!
//! Running softmax: Milakov & Gimelshein, 1805.02867; backward from the saved log-sum-exp: Dao et al.,
//! 2205.14135.

use super::{Heads, check, groups_of_64, params, prefers_texels};
use crate::gpu::kernel;
use crate::gpu::{Binding, Copied, Gpu, Recorder, Tensor, Tier};
use crate::{Error, Result};

params!(Params for [
        "attention", "attention_dq", "attention_dkv",
        "attention_subgroup", "attention_dq_subgroup", "attention_dkv_subgroup",
        "attention_tiled", "attention_dq_tiled", "attention_dkv_tiled",
    ];
    queries: u32, heads: u32, kv_heads: u32, scale: f32,
    q_at: u32, q_stride: u32, q_head: u32, k_at: u32, v_at: u32, kv_stride: u32, kv_head: u32,
    window: u32, cap: f32);
params!(DeltaParams for ["attention_delta"]; rows: u32, vectors: u32);

/// Head sizes with a compiled variant.
pub const HEAD_DIMS: [usize; 15] = [4, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 256];
/// Head sizes with a compiled variant that caps the scores.
pub const CAPPED_HEAD_DIMS: [usize; 3] = [16, 128, 256];

/// Rows of a workgroup in the tiled kernels; `TILE` in `common/attention_tile.wgsl`.
const TILE: usize = 64;
/// The most rows that a workgroup of these loads at a time.
const MOST_STAGED: usize = 32;
/// The largest heads for which one tiled kernel sums dk and dv: for larger ones, the two sums take too many
/// registers.
const BOTH_SUMS: usize = 64;

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block(), DeltaParams::block()]
}

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Queries, T.
    pub queries: usize,
    /// Keys, S: as many as queries, or the slots of a sampler's cache.
    pub keys: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads, G; H is a multiple of it.
    pub kv_heads: usize,
    /// Elements of a head; one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Factor on q·k, usually 1 / √head_dim.
    pub scale: f32,
    /// Sliding window: the number of its last keys that a query sees; `None` for all keys.
    pub window: Option<usize>,
    /// Scores s become cap · tanh(s / cap); `head_dim` is then one of [`CAPPED_HEAD_DIMS`].
    pub cap: Option<f32>,
    /// The mean number of keys a query sees, for the cost estimate.
    pub mean_keys: usize,
    /// Whether the keys between those that a query sees are valid numbers: true for a packed batch, false for
    /// a sampler's cache. The backward pass requires it.
    pub dense: bool,
}

impl Shape {
    fn params(&self, Operands { q, k, v }: Operands) -> Params {
        let vectors = |elements: usize| {
            assert!(elements.is_multiple_of(4), "attention: an operand that is not whole vec4s");
            (elements / 4) as u32
        };
        assert_eq!((k.stride, k.head), (v.stride, v.head), "attention: keys and values have one stride");
        Params {
            queries: self.queries as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            scale: self.scale,
            q_at: vectors(q.at),
            q_stride: vectors(q.stride),
            q_head: vectors(q.head),
            k_at: vectors(k.at),
            v_at: vectors(v.at),
            kv_stride: vectors(k.stride),
            kv_head: vectors(k.head),
            window: self.window.map_or(u32::MAX, |window| window as u32),
            cap: self.cap.unwrap_or(0.0),
        }
    }

    /// The tensors of q, k and v, and the number of elements of each up to its last head.
    fn extents<'a>(&self, Operands { q, k, v }: Operands<'a>) -> [(Binding<'a>, usize); 3] {
        let sizes =
            [(q, self.queries, self.heads), (k, self.keys, self.kv_heads), (v, self.keys, self.kv_heads)];
        sizes.map(|(of, tokens, heads)| (of.data, of.extent(tokens, heads, self.head_dim)))
    }

    /// Fails unless the tensors of q, k and v have enough elements.
    fn check(&self, [(of_q, q), (of_k, k), (of_v, v)]: [(&'static str, Heads); 3]) -> Result<()> {
        let names = [of_q, of_k, of_v];
        for (name, (tensor, count)) in names.into_iter().zip(self.extents(Operands { q, k, v })) {
            check("attention", &[(name, tensor, count)])?;
        }
        Ok(())
    }

    fn cap_flag(&self) -> &'static str {
        if self.cap.is_some() { " CAP" } else { "" }
    }

    /// The variant of `name` without tiles, and its number of workgroups for `queries` rows of each of
    /// `heads` heads.
    fn variant(&self, gpu: &Gpu, name: &str, flags: &str, heads: usize) -> (String, u64) {
        let dim = self.head_dim;
        let cap = self.cap_flag();
        let cache = if self.dense { cap.to_string() } else { format!("{cap} CACHE") };
        let lanes = gpu.subgroup().filter(|_| gpu.tier() == Tier::Software);
        match lanes.filter(|lanes| [4, 8].contains(lanes) && dim.is_multiple_of(8)) {
            Some(lanes) => (
                format!("{name}_subgroup SG={lanes} HEAD_DIM={dim}{flags}{cache}"),
                (self.queries.div_ceil(lanes) * heads) as u64,
            ),
            None => (format!("{name} HEAD_DIM={dim}{flags}{cap}"), groups_of_64(self.queries * heads)),
        }
    }

    /// The portable tier's variant of `name`, and its number of workgroups for `rows` rows of each kv head.
    /// Its block size is the largest multiple of 8, up to [`MOST_STAGED`], for which a block of vectors,
    /// `weights` blocks of weights, and what the kernel keeps of its rows fit in 16 KiB of workgroup memory.
    fn tiled(&self, name: &str, block: &str, rows: usize, weights: usize) -> (String, u64) {
        let dim = self.head_dim;
        let cap = self.cap_flag();
        // Rows of vectors and of weights have odd strides, see common/attention_tile.wgsl.
        let (vectors, quads) = ((dim / 4) | 1, TILE / 4 + 1);
        let kept = TILE + 1;
        let size = ((1024 - kept) / (vectors + weights * quads) / 8 * 8).min(MOST_STAGED);
        let variant = format!("{name} HEAD_DIM={dim} {block}={size} COLUMNS={}{cap}", dim.div_ceil(32));
        (variant, (rows.div_ceil(TILE) * self.kv_heads) as u64)
    }

    /// The variant and the number of workgroups of a kernel whose rows are queries: the forward pass, and dq.
    fn by_query(&self, gpu: &Gpu, name: &str) -> (String, u64) {
        match gpu.tier() {
            Tier::Portable => {
                let rows = self.queries * self.heads / self.kv_heads;
                self.tiled(&format!("{name}_tiled"), "KEYS", rows, 1)
            }
            Tier::Software => self.variant(gpu, name, "", self.heads),
        }
    }

    /// What is copied of the first elements of tensors, if a kernel should read them through textures: not if
    /// that is more than it loads.
    fn copies(&self, gpu: &Gpu, read: &[(Binding, usize)]) -> Option<Vec<Option<Copied>>> {
        let loads = self.queries.div_ceil(8) * self.heads * self.mean_keys * self.head_dim;
        let copied: usize = read.iter().map(|(_, count)| count).sum();
        if copied >= 8 * loads || !prefers_texels(gpu, self.queries) {
            return None;
        }
        read.iter().map(|&(_, count)| Copied::run(0, 4 * count as u64).map(Some)).collect()
    }

    /// Records a kernel. `read` are the operands that it can read through textures, in the order of
    /// `bindings`, with the number of elements that it may read of each.
    fn record(
        &self,
        rec: &mut Recorder,
        (mut variant, groups): (String, u64),
        params: &Params,
        (bindings, read): (&[Binding], &[(Binding, usize)]),
        operations: f64,
    ) {
        let shared = variant.contains("_subgroup ");
        let copies = if shared { self.copies(rec.gpu(), read) } else { None };
        if copies.is_some() {
            variant += " TEXELS";
        }
        let shader = kernel(rec.gpu(), &variant);
        rec.dispatch_with(&shader, params, (bindings, &copies.unwrap_or_default()), groups, operations);
    }

    fn operations(&self, per_element: f64) -> f64 {
        // Register-bound loops with a load for every multiplication run at a fraction of a matmul's rate, so
        // their operations count three times.
        3.0 * per_element
            * (self.queries * self.heads * self.head_dim) as f64
            * self.mean_keys.min(self.window.unwrap_or(usize::MAX)) as f64
    }
}

/// Fails unless there are attention kernels for `head_dim`, with capped scores if `capped` is set.
pub fn supports(head_dim: usize, capped: bool, origin: &str) -> Result<()> {
    let all: &[usize] = if capped { &CAPPED_HEAD_DIMS } else { &HEAD_DIMS };
    if all.contains(&head_dim) {
        return Ok(());
    }
    let fix = "use a model with one of these head sizes";
    let with = if capped { " with attn_logit_softcapping" } else { "" };
    Err(Error::input(origin, format!("head_dim one of {all:?}{with}"), head_dim, fix))
}

/// Queries, keys and values. All heads start at multiples of 4 elements.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// `(T, H, hd)`
    pub q: Heads<'a>,
    /// `(slots, G, hd)`
    pub k: Heads<'a>,
    /// `(slots, G, hd)`, with k's strides.
    pub v: Heads<'a>,
}

/// From operands and ranges `(T, 4)`: o `(T, H, hd)`, and lse in the first half of stats `(2, T, H)`.
pub fn forward(
    rec: &mut Recorder,
    operands: Operands,
    ranges: &Tensor,
    o: &Tensor,
    stats: &Tensor,
    shape: Shape,
) -> Result<()> {
    let rows = shape.queries * shape.heads;
    let count = rows * shape.head_dim;
    let Operands { q, k, v } = operands;
    shape.check([("q", q), ("k", k), ("v", v)])?;
    check("attention", &[("ranges", ranges, 4 * shape.queries), ("o", o, count), ("stats", stats, rows)])?;
    let chosen = shape.by_query(rec.gpu(), "attention");
    let bindings = [q.data, k.data, v.data, ranges, o, stats];
    let read = shape.extents(operands);
    shape.record(rec, chosen, &shape.params(operands), (&bindings, &read), shape.operations(4.0));
    Ok(())
}

/// What the backward pass needs from the forward pass. Keys are the batch's own tokens: S = T.
pub struct Saved<'a> {
    /// Queries, keys and values.
    pub operands: Operands<'a>,
    /// `(T, H, hd)`
    pub o: &'a Tensor,
    /// `(2, T, H)`: lse; delta is written into the second half.
    pub stats: &'a Tensor,
    /// `(T, 4)`: the key ranges of each query.
    pub ranges: &'a Tensor,
    /// `(T, 4)`: id, position, slot, visible_end.
    pub tokens: &'a Tensor,
}

/// The operands' gradients, each `=`, from d_o `(T, H, hd)`. dq has q's layout. In dkv, which may be the same
/// tensor as dq, dk has k's layout and dv has v's.
pub fn backward(
    rec: &mut Recorder,
    saved: Saved,
    d_o: &Tensor,
    dq: &Tensor,
    dkv: &Tensor,
    shape: Shape,
) -> Result<()> {
    let Saved { operands, o, stats, ranges, tokens } = saved;
    let Operands { q, k, v } = operands;
    assert!(shape.dense && shape.keys == shape.queries, "attention: a cache has no gradients");
    assert_ne!(k.at, v.at, "attention: keys and values are columns of one tensor where they have gradients");
    let rows = shape.queries * shape.heads;
    let count = rows * shape.head_dim;
    shape.check([("q", q), ("k", k), ("v", v)])?;
    shape.check([
        ("dq", Heads { data: dq, ..q }),
        ("dk", Heads { data: dkv, ..k }),
        ("dv", Heads { data: dkv, ..v }),
    ])?;
    check("attention_backward", &[("o", o, count), ("d_o", d_o, count), ("stats", stats, 2 * rows)])?;
    let delta = DeltaParams { rows: rows as u32, vectors: (shape.head_dim / 4) as u32 };
    let shader = kernel(rec.gpu(), "attention_delta");
    rec.dispatch(&shader, &delta, &[o, d_o, stats], groups_of_64(rows), 2.0 * count as f64);
    let params = shape.params(operands);
    let [read_q, read_k, read_v] = shape.extents(operands);
    let read_o = (d_o, count);
    let (q, k, v) = (q.data, k.data, v.data);
    match rec.gpu().tier() {
        Tier::Portable => {
            let passes: &[_] = match shape.head_dim <= BOTH_SUMS {
                true => &[("attention_dkv_tiled", 2, 8.0)],
                false => &[("attention_dkv_tiled DV", 1, 4.0), ("attention_dkv_tiled DK", 1, 6.0)],
            };
            let bindings = [q, k, v, tokens, stats, d_o, dkv];
            for &(name, weights, per_element) in passes {
                let (variant, groups) = shape.tiled(name, "ROWS", shape.queries, weights);
                let (shader, operations) = (kernel(rec.gpu(), &variant), shape.operations(per_element));
                rec.dispatch(&shader, &params, &bindings, groups, operations);
            }
        }
        Tier::Software => {
            let chosen = shape.variant(rec.gpu(), "attention_dkv", " DV", shape.kv_heads);
            let (bindings, read) = ([q, k, tokens, stats, d_o, dkv], [read_q, read_k, read_o]);
            shape.record(rec, chosen, &params, (&bindings, &read), shape.operations(4.0));
            let chosen = shape.variant(rec.gpu(), "attention_dkv", "", shape.kv_heads);
            let (bindings, read) = ([q, k, tokens, stats, d_o, dkv, v], [read_q, read_k, read_o, read_v]);
            shape.record(rec, chosen, &params, (&bindings, &read), shape.operations(6.0));
        }
    }
    let chosen = shape.by_query(rec.gpu(), "attention_dq");
    let (bindings, read) = ([q, k, v, ranges, stats, d_o, dq], [read_q, read_k, read_v, read_o]);
    shape.record(rec, chosen, &params, (&bindings, &read), shape.operations(6.0));
    Ok(())
}
