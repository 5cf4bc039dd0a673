//! The buffers of a pass: allocated once for a capacity, used by every batch that fits.

use crate::data::packing::Packed;
use crate::gpu::{DType, Memory, Purpose, Recorder, Tensor};
use crate::kernels::{gather, preference, retain};
use crate::loss::{Loss, Retain};
use crate::nn::{Recompute, Saved, Scratch, Sizes};
use crate::{Error, Result};

use super::DecoderConfig;

/// The largest batch that fits into a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Packed tokens, T.
    pub tokens: usize,
    /// Response tokens, R.
    pub rows: usize,
    /// Sequences, S.
    pub sequences: usize,
    /// Groups, G.
    pub groups: usize,
    /// What the backward pass recomputes; `None` for a workspace without a backward pass.
    pub training: Option<Recompute>,
}

impl Capacity {
    /// The smallest capacity into which each of `batches` fits.
    pub fn covering<'a>(batches: impl Iterator<Item = &'a Packed>, training: Option<Recompute>) -> Self {
        let mut most = Self { tokens: 1, rows: 1, sequences: 1, groups: 1, training };
        for batch in batches {
            most.tokens = most.tokens.max(batch.tokens.len());
            most.rows = most.rows.max(batch.predict.len());
            most.sequences = most.sequences.max(batch.rows.len());
            most.groups = most.groups.max(batch.groups.len());
        }
        most
    }

    /// The larger of the two capacities in every size; `training` is that of `self`.
    pub fn and(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            rows: self.rows.max(other.rows),
            sequences: self.sequences.max(other.sequences),
            groups: self.groups.max(other.groups),
            training: self.training,
        }
    }

    /// The capacity for two batches packed together, one that fits into each, up to `budget` tokens.
    pub(crate) fn beside(self, other: Self, budget: usize) -> Self {
        let least = self.tokens.max(other.tokens);
        Self {
            tokens: (self.tokens + other.tokens).min(budget.max(least)),
            rows: self.rows + other.rows,
            sequences: self.sequences + other.sequences,
            groups: self.groups + other.groups,
            training: self.training,
        }
    }

    /// Whether everything that fits into `other` fits into this capacity.
    pub fn takes(&self, other: &Self) -> bool {
        self.and(*other) == *self
    }
}

/// A chunk of logits has about this many elements (32 MiB): its rows are rounded up to a multiple of 64, so
/// it has at least 64 rows and may be larger.
const CHUNK_ELEMENTS: usize = 8 << 20;

/// Rows of a logits chunk: a multiple of 64, so that chunks of any width start at bindable offsets.
pub(crate) fn chunk_rows(vocab: usize, rows: usize) -> usize {
    (CHUNK_ELEMENTS / vocab).clamp(1, rows.max(1)).next_multiple_of(64)
}

/// Sizes of the batch in a workspace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch {
    /// Packed tokens, T.
    pub tokens: usize,
    /// Response tokens, R.
    pub rows: usize,
    /// Sequences, S.
    pub sequences: usize,
    /// Groups, G.
    pub groups: usize,
    /// Keys that a token sees on average.
    pub mean_keys: usize,
    /// Distinct positions.
    pub distinct_positions: usize,
    /// Distinct token ids.
    pub distinct_ids: usize,
    /// Distinct tokens that predict a response token.
    pub distinct_sources: usize,
}

/// All buffers of a pass except the parameters.
pub struct Workspace {
    pub(super) capacity: Capacity,
    pub(super) batch: Batch,
    /// Token ids and positions must be below these limits, which the kernels do not check.
    vocab: u32,
    positions: u32,
    /// `(T, 4)`: id, position, slot, visible_end.
    pub(crate) tokens: Tensor,
    /// `(T, 4)`: the key ranges of each token.
    pub(crate) ranges: Tensor,
    /// `(R, 4)`: source token, target id, sequence, 0.
    pub(super) predict: Tensor,
    /// `(S, 2)`: first and end row.
    pub rows: Tensor,
    /// `(N, 2)`: first and end sequence.
    pub groups: Tensor,
    /// Which rows read each token id, for the embedding's gradient.
    pub(super) id_lists: Tensor,
    /// Which rows read each position, for the gradient of learned ones.
    pub(super) position_lists: Tensor,
    /// Which response rows read each token, for the head's gradient.
    pub(super) source_lists: Tensor,
    /// The residual stream before each block and after the last, `(T, D)` each. Without a backward pass there
    /// are two, used in turn.
    pub(super) stream: Vec<Tensor>,
    /// One per block; buffers that are not kept for the backward pass are shared.
    pub(super) saved: Vec<Saved>,
    pub(super) scratch: Scratch,
    /// `(R, D)`: hidden states that predict a response token.
    pub(super) hidden: Tensor,
    /// `(R)`, or `(2, R)` with LayerNorm: the last norm's statistics.
    pub(super) hidden_stats: Tensor,
    /// `(R, D)`: after the last norm.
    pub(super) normed: Tensor,
    /// `(chunk, V)`: a chunk of the logits.
    pub(crate) logits: Tensor,
    pub(super) chunk: usize,
    /// `(3, R)`: logp, lse, entropy.
    pub stats: Tensor,
    /// `(2, S)`: summed logp, entropy.
    pub sums: Tensor,
    /// `(S)`: the references' weighted sums of logp.
    pub reference: Tensor,
    /// `(R)`: the weight of each token's logp in the loss.
    pub weights: Tensor,
    /// `(R)`: logp of retained tokens before training.
    pub start: Tensor,
    /// `(R)`: dL/dlogp of a token.
    pub coefficient: Tensor,
    /// `(N, 4)`: loss, margin, anchors' reward, negative's reward.
    pub outcome: Tensor,
    /// `(R, D)`: the gradient of `normed`.
    pub(super) dnormed: Tensor,
    /// `(R, D)`: the gradient of `hidden`.
    pub(super) dhidden: Tensor,
    /// `(T, D)`: the gradient of the residual stream.
    pub(super) dstream: Tensor,
}

impl Workspace {
    /// Records the losses of the batch's first `groups` groups, whose `stats`, `weights` and `reference` are
    /// filled, into `outcome` and `coefficient`. `divisor` is the number of such groups in the whole
    /// optimizer batch, `kl` is KTO's estimate of the KL divergence over it.
    ///
    /// # Errors
    /// As [`preference::forward`].
    pub fn loss(&self, rec: &mut Recorder, loss: Loss, groups: usize, divisor: usize, kl: f64) -> Result<()> {
        let batch = preference::Batch {
            groups: &self.groups,
            rows: &self.rows,
            stats: &self.stats,
            weights: &self.weights,
            reference: &self.reference,
            outcome: &self.outcome,
            coefficient: &self.coefficient,
        };
        let (sequences, rows) = (self.batch().sequences, self.batch().rows);
        let count = preference::Count { groups, sequences, rows };
        preference::forward(rec, loss.formula, batch, count, loss.terms(kl), divisor)
    }

    /// Records the coefficients of the retained answers, the rows from `first` to the end of the batch, whose
    /// `start` is filled. `scale` is the term's weight divided by the number of retained answers in the whole
    /// optimizer batch.
    ///
    /// # Errors
    /// As [`retain::forward`].
    pub fn retain(&self, rec: &mut Recorder, form: Retain, first: usize, scale: f64) -> Result<()> {
        let batch = retain::Batch {
            predict: &self.predict,
            rows: &self.rows,
            stats: &self.stats,
            start: &self.start,
            coefficient: &self.coefficient,
        };
        retain::forward(rec, form, batch, (first, self.batch().rows - first), scale)
    }

    /// Allocates for `capacity`.
    pub fn new(memory: &Memory, config: &DecoderConfig, sizes: Sizes, capacity: Capacity) -> Result<Self> {
        let Capacity { tokens, rows, sequences, groups, training: kept } = capacity;
        let training = kept.is_some();
        let sizes = Sizes { tokens, ..sizes };
        let f32s = |label, count| Tensor::new(memory, Purpose::Activations, label, count, DType::F32);
        let table = |label, count| Tensor::new(memory, Purpose::Staging, label, count, DType::U32);
        let back = |label, count: usize| f32s(label, if training { count } else { 0 });
        let width = config.width;
        let streams = if training { config.layers() + 1 } else { 2 };
        let chunk = chunk_rows(config.logits(), rows);
        Ok(Self {
            capacity,
            batch: Batch::default(),
            vocab: config.vocab as u32,
            positions: config.context() as u32,
            tokens: table("tokens", 4 * tokens)?,
            ranges: table("ranges", 4 * tokens)?,
            predict: table("predict", 4 * rows)?,
            rows: table("rows", 2 * sequences)?,
            groups: table("groups", 2 * groups)?,
            id_lists: table("id lists", if training { 3 * tokens + 1 } else { 0 })?,
            position_lists: table(
                "position lists",
                if training && config.learned_positions { 3 * tokens + 1 } else { 0 },
            )?,
            source_lists: table("source lists", if training { 3 * rows + 1 } else { 0 })?,
            stream: (0..streams).map(|_| f32s("residual stream", tokens * width)).collect::<Result<_>>()?,
            saved: Saved::all(memory, &sizes, config.layers(), kept.unwrap_or(Recompute::Full))?,
            // An adapter on the head sees rows of a chunk instead of tokens.
            scratch: Scratch::new(memory, &Sizes { tokens: tokens.max(chunk.min(rows)), ..sizes }, training)?,
            hidden: f32s("hidden", rows * width)?,
            hidden_stats: f32s("last norm's stats", rows * sizes.norm_stats)?,
            normed: f32s("last norm", rows * width)?,
            logits: Tensor::new(memory, Purpose::Logits, "logits", chunk * config.logits(), DType::F32)?,
            chunk,
            stats: f32s("stats", 3 * rows)?,
            sums: f32s("sums", 2 * sequences)?,
            reference: f32s("reference", sequences)?,
            weights: back("loss weights", rows)?,
            start: back("start", rows)?,
            coefficient: f32s("coefficient", rows)?,
            outcome: f32s("outcome", 4 * groups)?,
            dnormed: back("dnormed", rows * width)?,
            dhidden: back("dhidden", rows * width)?,
            dstream: back("dstream", tokens * width)?,
        })
    }

    /// The largest batch that fits.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Sizes of the current batch.
    pub fn batch(&self) -> Batch {
        self.batch
    }

    /// Sets the size of a batch whose tables the sampler writes.
    pub(crate) fn resize(&mut self, tokens: usize, mean_keys: usize) {
        self.batch = Batch { tokens, mean_keys, ..Batch::default() };
    }

    /// Fails on a token id outside the vocabulary or a position outside the context: the kernels use them as
    /// indices without a check.
    fn check_ids(&self, packed: &Packed) -> Result<()> {
        let ids = packed.tokens.iter().map(|t| t[0]).chain(packed.predict.iter().map(|p| p[1]));
        if let Some(id) = ids.into_iter().find(|&id| id >= self.vocab) {
            let fix = "use the tokenizer that belongs to the model";
            return Err(Error::input(
                "token ids",
                format!("ids below {}, the model's vocab_size", self.vocab),
                id,
                fix,
            ));
        }
        let longest = packed.tokens.iter().map(|t| t[1]).max().unwrap_or(0);
        if longest >= self.positions {
            let expected =
                format!("at most {} tokens of prompt and answer, the model's context", self.positions);
            let fix = "shorten the row, or lower max_prompt_length, max_completion_length or max_new_tokens";
            return Err(Error::input("packed batch", expected, format!("position {longest}"), fix));
        }
        Ok(())
    }

    /// Loads a batch's tables; its tokens get the weight 1. Commands recorded so far are submitted first, so
    /// that they still read the old tables.
    ///
    /// # Errors
    /// When the batch exceeds the capacity.
    pub fn load(&mut self, rec: &mut Recorder, packed: &Packed) -> Result<()> {
        let needed = Capacity::covering([packed].into_iter(), self.capacity.training);
        let c = self.capacity;
        if !c.takes(&needed) {
            let fix = "raise max_tokens_per_batch or shorten the rows";
            return Err(Error::input("packed batch", format!("at most {c:?}"), format!("{needed:?}"), fix));
        }
        self.check_ids(packed)?;
        rec.submit();
        let gpu = rec.gpu();
        self.tokens.write_u32(gpu, packed.tokens.as_flattened());
        self.ranges.write_u32(gpu, packed.ranges.as_flattened());
        self.predict.write_u32(gpu, packed.predict.as_flattened());
        self.rows.write_u32(gpu, packed.rows.as_flattened());
        self.groups.write_u32(gpu, packed.groups.as_flattened());
        self.batch = Batch {
            tokens: packed.tokens.len(),
            rows: packed.predict.len(),
            sequences: packed.rows.len(),
            groups: packed.groups.len(),
            mean_keys: packed.mean_keys(),
            ..Batch::default()
        };
        if c.training.is_some() {
            self.weights.write_f32(gpu, &vec![1.0; packed.predict.len()]);
            let (list, distinct) = gather::lists(packed.tokens.iter().map(|t| t[0]));
            self.id_lists.write_u32(gpu, &list);
            self.batch.distinct_ids = distinct;
            if self.position_lists.len() > 0 {
                let (list, distinct) = gather::lists(packed.tokens.iter().map(|t| t[1]));
                self.position_lists.write_u32(gpu, &list);
                self.batch.distinct_positions = distinct;
            }
            let (list, distinct) = gather::lists(packed.predict.iter().map(|p| p[0]));
            self.source_lists.write_u32(gpu, &list);
            self.batch.distinct_sources = distinct;
        }
        Ok(())
    }
}
