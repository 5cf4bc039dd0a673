//! The buffers of blocks: activations that each block keeps for its backward pass, and scratch space that all
//! blocks share.

use crate::Result;
use crate::gpu::{DType, Memory, Purpose, Tensor};

/// Widths that size a block's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The most tokens, T.
    pub tokens: usize,
    /// D.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// H × head_dim.
    pub q_width: usize,
    /// G × head_dim.
    pub kv_width: usize,
    /// Inner width of the MLP, F.
    pub inner: usize,
    /// Width of the MLP's first projection: F, or 2 F when gated.
    pub up: usize,
    /// Statistics that a norm keeps for each row: 1, or 2 for a LayerNorm.
    pub norm_stats: usize,
    /// Heads that have a norm of their own: H + G or 0.
    pub normed_heads: usize,
    /// Whether the outputs of attention and MLP have norms.
    pub output_norms: bool,
    /// Whether attention and MLP read the same input.
    pub parallel: bool,
    /// The ranks of the adapters.
    pub ranks: Ranks,
    /// Whether adapters have dropout.
    pub dropout: bool,
}

/// For each layer of a block, and for the head: the sum of the ranks of the adapters on its input; the
/// largest sum of any block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ranks {
    /// Queries, keys and values.
    pub qkv: usize,
    /// Attention's output projection.
    pub o: usize,
    /// The MLP's first projection.
    pub up: usize,
    /// The MLP's second projection.
    pub down: usize,
    /// The head.
    pub head: usize,
}

impl Ranks {
    /// The larger of the two in each layer.
    pub fn and(self, other: Self) -> Self {
        Self {
            qkv: self.qkv.max(other.qkv),
            o: self.o.max(other.o),
            up: self.up.max(other.up),
            down: self.down.max(other.down),
            head: self.head.max(other.head),
        }
    }

    fn largest(&self) -> usize {
        let Self { qkv, o, up, down, head } = *self;
        [qkv, o, up, down, head].into_iter().max().unwrap_or(0)
    }
}

/// Activation checkpointing (Chen et al., 1604.06174): what the backward pass recomputes instead of keeping.
/// The outputs of norms and of the MLP's activation are never kept: the kernels of their gradients compute
/// them again. The gradients are bit-identical.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Recompute {
    /// No matrix products: fastest
    #[default]
    None,
    /// The MLP's first product
    Mlp,
    /// Everything in a block, from its input: least memory
    Full,
}

/// Activations that one block's forward pass keeps for its backward pass, apart from the block's input.
#[derive(Clone)]
pub struct Saved {
    /// What the backward pass recomputes, because its buffers are shared with other blocks.
    pub recompute: Recompute,
    /// `(T)`, or `(2, T)` for a LayerNorm: statistics of the norm before attention.
    pub attention_stats: Tensor,
    /// `(T, H + 2 G, head_dim)`: queries and keys, after their norms and rotation, and values.
    pub qkv: Tensor,
    /// `(T, H + G, head_dim)`: queries and keys before their norms; empty without such norms.
    pub raw: Tensor,
    /// `(T, H + G)`: rstd of the norms of queries and keys.
    pub raw_rstd: Tensor,
    /// `(T, H, head_dim)`: attention's output before the output projection.
    pub o: Tensor,
    /// `(2, T, H)`: lse, delta.
    pub stats: Tensor,
    /// `(T, D)`: attention's output before its norm; empty without one.
    pub attention_out: Tensor,
    /// `(T)`: rstd of that norm.
    pub attention_out_stats: Tensor,
    /// `(T, D)`: the residual stream after attention.
    pub middle: Tensor,
    /// `(T)`, or `(2, T)` for a LayerNorm: statistics of the norm before the MLP.
    pub mlp_stats: Tensor,
    /// `(T, F)`, or when gated `(T, 2, F)`: gate, up.
    pub up: Tensor,
    /// `(T, D)`: the MLP's output before its norm; empty without one.
    pub mlp_out: Tensor,
    /// `(T)`: rstd of that norm.
    pub mlp_out_stats: Tensor,
    /// The inner activations of the adapters.
    pub low: Low,
}

/// The inner activations of a block's adapters, `(T, ranks)` each: the adapters' inputs times their A.
#[derive(Clone)]
pub struct Low {
    /// Of queries, keys and values.
    pub qkv: Tensor,
    /// Of attention's output projection.
    pub o: Tensor,
    /// Of the MLP's first projection.
    pub up: Tensor,
    /// Of the MLP's second projection.
    pub down: Tensor,
}

impl Saved {
    /// Allocates the buffers of `blocks` blocks. Blocks share the buffers of activations that are recomputed.
    pub fn all(memory: &Memory, s: &Sizes, blocks: usize, recompute: Recompute) -> Result<Vec<Self>> {
        let first = Self::new(memory, s, recompute, None)?;
        let of = |i| match recompute {
            _ if i == 0 => Ok(first.clone()),
            Recompute::None => Self::new(memory, s, recompute, None),
            Recompute::Mlp => Self::new(memory, s, recompute, Some(&first)),
            Recompute::Full => Ok(first.clone()),
        };
        (0..blocks).map(of).collect()
    }

    /// Allocates the buffers of one block. If `up` is given, its buffers for the MLP's first product are
    /// shared.
    fn new(memory: &Memory, s: &Sizes, recompute: Recompute, up: Option<&Self>) -> Result<Self> {
        let t = s.tokens;
        let make =
            |label, width: usize| Tensor::new(memory, Purpose::Activations, label, t * width, DType::F32);
        let head_dim = s.q_width / s.heads;
        let out = usize::from(s.output_norms);
        Ok(Self {
            recompute,
            attention_stats: make("attention norm", s.norm_stats)?,
            qkv: make("qkv", s.q_width + 2 * s.kv_width)?,
            raw: make("queries and keys", s.normed_heads * head_dim)?,
            raw_rstd: make("queries' and keys' norm", s.normed_heads)?,
            o: make("o", s.q_width)?,
            stats: make("attention stats", 2 * s.heads)?,
            attention_out: make("attention out", out * s.width)?,
            attention_out_stats: make("attention out norm", out)?,
            middle: make("middle", s.width)?,
            mlp_stats: make("mlp norm", s.norm_stats)?,
            up: up.map_or_else(|| make("up", s.up), |shared| Ok(shared.up.clone()))?,
            mlp_out: make("mlp out", out * s.width)?,
            mlp_out_stats: make("mlp out norm", out)?,
            low: Low {
                qkv: make("adapters of qkv", s.ranks.qkv)?,
                o: make("adapter of o", s.ranks.o)?,
                up: up
                    .map_or_else(|| make("adapters of up", s.ranks.up), |shared| Ok(shared.low.up.clone()))?,
                down: make("adapter of down", s.ranks.down)?,
            },
        })
    }
}

/// Buffers that all blocks use in turn. Those for the backward pass are empty in a forward-only set.
pub struct Scratch {
    /// `(T, D)`: a norm's output.
    pub normed: Tensor,
    /// `(T, F)`: the output of the MLP's activation.
    pub act: Tensor,
    /// `(T, rank)`, or the rows of a chunk if these are more: the inner activation of an adapter on the head.
    pub head_low: Tensor,
    /// `(T, max(D, F, H × head_dim))`: an adapter's input after dropout.
    pub dropped: Tensor,
    /// `(T, ranks)`: the gradient of the inner activations of a layer's adapters.
    pub dlow: Tensor,
    /// `(T, D)`: the gradient of a norm's output.
    pub dnormed: Tensor,
    /// `(T, D)`: the gradient of an output before its norm, or of attention's input in a parallel block;
    /// empty in other blocks.
    pub dbranch: Tensor,
    /// `(T, H + 2 G, head_dim)`: the gradients of queries, keys and values.
    pub dqkv: Tensor,
    /// `(T, H, head_dim)`: the gradient of `o`.
    pub d_o: Tensor,
    /// `(T, F)`: the gradient of `act`.
    pub dact: Tensor,
    /// `(T, F)`, or when gated `(T, 2, F)`: the gradient of `up`.
    pub dup: Tensor,
}

impl Scratch {
    /// Allocates the buffers; without `backward` the gradient buffers are empty.
    pub fn new(memory: &Memory, s: &Sizes, backward: bool) -> Result<Self> {
        let t = s.tokens;
        let make =
            |label, width: usize| Tensor::new(memory, Purpose::Activations, label, t * width, DType::F32);
        let back = |label, width: usize| make(label, if backward { width } else { 0 });
        Ok(Self {
            normed: make("normed", s.width)?,
            act: make("act", s.inner)?,
            head_low: make("adapter of the head", s.ranks.head)?,
            dropped: make("dropped", if s.dropout { s.width.max(s.inner).max(s.q_width) } else { 0 })?,
            dlow: back("dlow", s.ranks.largest())?,
            dnormed: back("dnormed", s.width)?,
            dbranch: back("dbranch", if s.output_norms || s.parallel { s.width } else { 0 })?,
            dqkv: back("dqkv", s.q_width + 2 * s.kv_width)?,
            d_o: back("d_o", s.q_width)?,
            dact: back("dact", s.inner)?,
            dup: back("dup", s.up)?,
        })
    }
}
