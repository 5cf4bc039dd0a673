//! The rows that a sampler decodes together: their buffers, and what the host knows of each.

use super::{Answer, SYNC_STEPS, SamplingParams};
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::{self as kernel, Common};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::Ranks;
use crate::{Error, Result};

/// An answer so far.
#[derive(Clone)]
pub(super) struct Drawn {
    pub ids: Vec<u32>,
    /// The prompt's and the answer's ids as a bit set, if there is a repetition penalty.
    seen: Option<Vec<u32>>,
}

impl Drawn {
    /// The beginning of an answer to `prompt`.
    pub fn new(prompt: &[u32], settings: &SamplingParams, vocab: usize) -> Self {
        let seen = (settings.repetition_penalty != 1.0).then(|| {
            let mut words = vec![0; vocab.div_ceil(32)];
            // Ids outside the vocabulary are refused when the prompt is loaded.
            let known = prompt.iter().filter(|&&id| (id as usize) < vocab);
            known.for_each(|&id| words[id as usize / 32] |= 1 << (id % 32));
            words
        });
        Self { ids: Vec::new(), seen }
    }

    /// Adds what a row's history holds of the last steps, up to where the row had ended. Returns the number
    /// of ids.
    ///
    /// # Errors
    /// If there is none: the logits were not finite. `place` names the row.
    pub fn extend(&mut self, history: &[u32], vocab: usize, place: &dyn Fn() -> String) -> Result<usize> {
        let count = history.iter().take_while(|&&id| (id as usize) < vocab).count();
        for &id in &history[..count] {
            self.ids.push(id);
            if let Some(seen) = &mut self.seen {
                seen[id as usize / 32] |= 1 << (id % 32);
            }
        }
        if count == 0 { Err(Error::not_finite(place(), "logits")) } else { Ok(count) }
    }

    /// The answer, if its last token ends it or it has as many tokens as it may have.
    pub fn finished(&self, settings: &SamplingParams) -> Option<Answer> {
        let ended = self.ids.last().is_some_and(|id| settings.ends.contains(id));
        let cut = self.ids.len() >= settings.max_new_tokens as usize;
        (ended || cut).then(|| Answer { ids: self.ids.clone(), ended })
    }
}

/// A row in its state before the next token is sampled.
pub(super) struct Row<'a> {
    /// The cache slots of the prompt (its first, and its end), and of the answer's first token.
    pub slots: [u32; 3],
    /// The prompt's last id: until the next look, a row that ends with its first token computes it again.
    pub before: u32,
    /// The prompt's index and the answer's: parts of the random counter.
    pub counters: [u32; 2],
    pub drawn: &'a Drawn,
    pub settings: &'a SamplingParams,
}

impl Row<'_> {
    /// The most keys that the row sees until the next look.
    pub fn keys(&self) -> usize {
        let [start, end, _] = self.slots;
        (end - start) as usize + self.drawn.ids.len() + SYNC_STEPS
    }
}

/// The workspaces and tables of a sampler's rows.
pub(super) struct RowBuffers {
    pub prefill: Workspace,
    pub decode: Workspace,
    /// `(rows)`: the index of the hidden state that predicts a row's next token.
    pub source: Tensor,
    /// `(rows)`: 0, 1, 2...
    pub own: Tensor,
    seen: Tensor,
    state: Tensor,
    history: Tensor,
    settings: Tensor,
    vocab: usize,
}

impl RowBuffers {
    /// Allocates for `rows` rows and `prefill` tokens of prompts at a time, of a model with adapters of up to
    /// these `ranks`.
    pub fn new(
        memory: &Memory,
        decoder: &Decoder,
        ranks: Ranks,
        prefill: usize,
        rows: usize,
    ) -> Result<Self> {
        // Every prompt has a row, so there are no more prompts than rows.
        let capacity = |tokens| Capacity { tokens, rows, sequences: 1, groups: rows, training: None };
        let table = |label, count| Tensor::new(memory, Purpose::Staging, label, count, DType::U32);
        let own: Vec<u32> = (0..rows as u32).collect();
        let vocab = decoder.config().vocab;
        Ok(Self {
            prefill: decoder.workspace_with(memory, ranks, capacity(prefill))?,
            decode: decoder.workspace_with(memory, ranks, capacity(rows))?,
            source: table("row sources", rows)?,
            own: Tensor::from_u32(memory, Purpose::Staging, "row numbers", &own)?,
            seen: table("seen ids", rows * vocab.div_ceil(32))?,
            state: table("row state", 4 * rows)?,
            history: table("drawn ids", rows * SYNC_STEPS)?,
            settings: table("sampling settings", rows * SamplingParams::WORDS)?,
            vocab,
        })
    }

    /// Uploads the tables of `rows`.
    pub fn load(&mut self, gpu: &Gpu, rows: &[Row]) {
        let (mut tokens, mut ranges) = (Vec::new(), Vec::new());
        let (mut state, mut settings) = (Vec::new(), Vec::new());
        for row in rows {
            let ([start, end, segment], drawn) = (row.slots, row.drawn.ids.len() as u32);
            // The kernel advances position, slot and range after every sampled token. Before the first one
            // they are one short of the answer's first token.
            let id = row.drawn.ids.last().copied().unwrap_or(row.before);
            tokens.push([id, end - start + drawn - 1, segment + drawn - 1, 0]);
            ranges.push([start, end, segment, segment + drawn]);
            state.push([row.counters[0], row.counters[1], drawn, 0]);
            settings.push(row.settings.words(self.vocab));
        }
        if rows.iter().any(|row| row.drawn.seen.is_some()) {
            let none = vec![0; self.vocab.div_ceil(32)];
            let seen: Vec<&[u32]> =
                rows.iter().map(|row| row.drawn.seen.as_deref().unwrap_or(&none)).collect();
            self.seen.write_u32(gpu, &seen.concat());
        }
        self.decode.tokens.write_u32(gpu, tokens.as_flattened());
        self.decode.ranges.write_u32(gpu, ranges.as_flattened());
        self.state.write_u32(gpu, state.as_flattened());
        self.settings.write_u32(gpu, settings.as_flattened());
        self.resize(rows);
    }

    /// Sets the number of the rows, and of the keys that they see.
    pub fn resize(&mut self, rows: &[Row]) {
        let keys: usize = rows.iter().map(Row::keys).sum();
        self.decode.resize(rows.len(), keys / rows.len().max(1));
    }

    /// Records the draw of a token from each of `count` rows of `logits`.
    pub fn draw(
        &self,
        rec: &mut Recorder,
        common: &Common,
        logits: &Tensor,
        count: usize,
        column: usize,
    ) -> Result<()> {
        let rows = kernel::Rows {
            logits,
            seen: &self.seen,
            state: &self.state,
            tokens: &self.decode.tokens,
            ranges: &self.decode.ranges,
            history: &self.history,
            settings: &self.settings,
        };
        kernel::forward(rec, common, rows, (count, self.vocab), (column, SYNC_STEPS))
    }

    /// Reads the history of `count` rows, [`SYNC_STEPS`] ids each. The copy is submitted at once.
    pub fn history<'g>(
        &self,
        gpu: &'g Gpu,
        count: usize,
    ) -> impl Future<Output = Result<Vec<u32>>> + use<'g> {
        self.history.slice(0, count * SYNC_STEPS).read_u32(gpu)
    }
}
