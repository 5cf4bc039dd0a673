//! Layers: each has a `forward` that records kernels into buffers it is given and a `backward` that mirrors
//! it.
//!
//! There is no tape. What the backward pass needs is kept in typed buffers ([`Saved`], one per block) and in
//! [`Scratch`], shared by all blocks. The outputs of norms and MLPs are computed again instead of kept.

mod attention;
mod block;
mod buffers;
mod linear;
mod mlp;
mod norm;
mod param;
mod table;

pub use attention::{Attention, HeadNorms, KvCache};
pub use block::{Block, Streamed};
pub use buffers::{Recompute, Saved, Scratch, Sizes};
pub use linear::{Linear, Lora, LoraPart, Weight};
pub use mlp::Mlp;
pub use norm::Norm;
pub(crate) use param::MAX_ARENA;
pub use param::{Arenas, Decay, Entry, Layout, Param, Part, transposed};
pub use table::{Piece, Table};

use crate::gpu::Tensor;

/// Which values the trained parameters have in a pass, and whether adapters take part.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Values of all trained parameters: the policy's, or a reference's.
    pub values: &'a Arenas,
    /// Whether LoRA adapters are on. When they are off, the model is the base model.
    pub adapter: bool,
    /// Dropout on adapter inputs: only in training passes.
    pub dropout: Option<Dropout>,
    /// Whether every token is the newest of its answer, as in a sampler's steps.
    pub decoding: bool,
}

/// The counters of a pass's dropout masks.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The micro-batch, counted over the run.
    pub step: u32,
    /// The run's seed.
    pub seed: u32,
}

/// A packed batch's tables on the device.
pub struct Tables<'a> {
    /// `(T, 4)`: id, position, slot, visible_end.
    pub tokens: &'a Tensor,
    /// `(T, 4)`: attention's key ranges.
    pub ranges: &'a Tensor,
    /// `(P, dim / 2, 2)` each: cosines and sines, a table for each kind of rotary positions.
    pub ropes: &'a [Tensor],
    /// T.
    pub count: usize,
    /// Keys that a token sees on average, for cost estimates.
    pub mean_keys: usize,
}
