//! Layers: each has a `forward` that records kernels that write to given buffers, and a `backward` that
//! mirrors it.
//!
//! There is no autograd tape. Activations for the backward pass are kept in typed buffers ([`Saved`], one per
//! block) and in [`Scratch`], shared by all blocks. The outputs of norms and of the MLP's activation are not
//! kept: their backward kernels compute them again. A layer's backward pass is therefore in two parts: first
//! the gradient of its input, and when the input was computed again, the gradients of its weights.

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
pub use buffers::{Low, Ranks, Recompute, Saved, Scratch, Sizes};
pub use linear::{Input, Linear, Lora, Weight};
pub use mlp::Mlp;
pub use norm::Norm;
pub(crate) use param::MAX_ARENA;
pub use param::{Arenas, Decay, Entry, Layout, Param, Part, transposed};
pub use table::{Piece, Table};

use crate::gpu::Tensor;

/// The settings of a pass: the values of the trained parameters, whether adapters are on, and dropout.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Values of all trained parameters: the policy's, or a reference's.
    pub values: &'a Arenas,
    /// Whether LoRA adapters are on. When they are off, the model is the base model.
    pub adapter: bool,
    /// Dropout on adapter inputs; `None` except in training passes.
    pub dropout: Option<Dropout>,
    /// Whether every row is the newest token of an answer, as in a sampler's steps.
    pub decoding: bool,
    /// Whether a cache may hold anything between the keys that a row sees, as a sampler's between the prompts
    /// and answers of others.
    pub sparse: bool,
}

/// The counters that determine a pass's dropout masks.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The number of the micro-batch in the run.
    pub step: u32,
    /// The run's seed.
    pub seed: u32,
}

/// Inputs that all layers of a forward pass share.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// The settings of the pass.
    pub pass: Pass<'a>,
    /// The batch's tables.
    pub tables: Tables<'a>,
    /// Buffers that the layers use in turn.
    pub scratch: &'a Scratch,
    /// Rows of a layer's input: T in the blocks, the rows that predict a token in the last norm and the head.
    pub rows: usize,
}

/// Inputs that all layers of a backward pass share.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    /// The inputs of the forward pass.
    pub forward: Forward<'a>,
    /// The gradients of trained parameters are added here.
    pub gradients: &'a Arenas,
}

/// A packed batch's tables on the device.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    /// `(T, 4)`: id, position, slot, visible_end.
    pub tokens: &'a Tensor,
    /// `(T, 4)`: attention's key ranges.
    pub ranges: &'a Tensor,
    /// `(P, dim / 2, 2)` each: cosines and sines, one table for each kind of rotary positions.
    pub ropes: &'a [Tensor],
    /// T.
    pub count: usize,
    /// Keys that a token sees on average, for cost estimates.
    pub mean_keys: usize,
}
