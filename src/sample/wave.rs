//! A wave: prompts whose answers are decoded together, with its buffers.

use super::room::Room;
use super::{Answer, Request, SPARE_SLOTS, SYNC_STEPS, SamplingParams, WaveLook};
use crate::data::packing::{Group, Packed};
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::{self as kernel, Common, NONE, Rows};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{KvCache, Pass};
use crate::{Error, Result};

/// The host's record of a row that is being decoded.
pub(super) struct Sequence {
    pub request: usize,
    index: u32,
    pub sample: u32,
    prompt: [u32; 2],
    /// The cache slot of the answer's first token.
    segment: u32,
    pub ids: Vec<u32>,
    seen: Option<Vec<u32>>,
}

/// The buffers of a wave.
pub(super) struct Wave {
    room: Room,
    prefill: Workspace,
    decode: Workspace,
    caches: Vec<KvCache>,
    /// The keys and values of the beginning that all prompts share; copied to each prompt's own.
    shared: Vec<KvCache>,
    /// `(rows)`: the index of the hidden state that predicts a row's next token.
    source: Tensor,
    /// `(rows)`: 0, 1, 2...
    own: Tensor,
    seen: Tensor,
    state: Tensor,
    history: Tensor,
    /// `(rows, 8)`: the settings of each row, the same for all.
    settings: Tensor,
}

impl Room {
    /// Allocates a sampler's buffers, and the one from which the host reads ids.
    pub fn allocate(self, memory: &Memory, decoder: &Decoder) -> Result<impl Sized + use<>> {
        let read = self.rows * SYNC_STEPS + Tensor::READBACK_EXTRA / 4;
        let read = Tensor::new(memory, Purpose::Staging, "drawn ids", read, DType::U32)?;
        Ok((Wave::new(memory, decoder, self)?, read))
    }
}

impl Wave {
    pub fn new(memory: &Memory, decoder: &Decoder, room: Room) -> Result<Self> {
        let Room { rows, shared, own_tokens, prompt_tokens, max_new } = room;
        // Every prompt has a row, so there are no more prompts than rows.
        let capacity = |tokens| Capacity { tokens, rows, sequences: 1, groups: rows, training: None };
        let table = |label, count| Tensor::new(memory, Purpose::Staging, label, count, DType::U32);
        let own: Vec<u32> = (0..rows as u32).collect();
        Ok(Self {
            room,
            prefill: decoder.workspace(memory, capacity(own_tokens.max(shared)))?,
            decode: decoder.workspace(memory, capacity(rows))?,
            caches: decoder.caches(memory, prompt_tokens + SPARE_SLOTS + rows * max_new)?,
            shared: if shared == 0 { Vec::new() } else { decoder.caches(memory, shared)? },
            source: table("row sources", rows)?,
            own: Tensor::from_u32(memory, Purpose::Staging, "row numbers", &own)?,
            seen: table("seen ids", rows * decoder.config().vocab.div_ceil(32))?,
            state: table("row state", 4 * rows)?,
            history: table("drawn ids", rows * SYNC_STEPS)?,
            settings: table("sampling settings", rows * SamplingParams::WORDS)?,
        })
    }

    /// Computes the keys and values of `beginning`, with which all prompts of the coming waves begin.
    pub fn begin(&mut self, gpu: &Gpu, decoder: &Decoder, pass: Pass<'_>, beginning: &[u32]) -> Result<()> {
        if beginning.is_empty() {
            return Ok(());
        }
        let mut rec = Recorder::new(gpu);
        let packed = Packed::new(&[Group { prompt: beginning, responses: Vec::new() }]);
        self.prefill.load(&mut rec, &packed)?;
        decoder.hidden(&mut rec, pass, &self.prefill, Some(&self.shared))?;
        rec.submit();
        Ok(())
    }

    /// Records copies of the shared beginning's keys and values into the slots of each prompt.
    fn copy_beginning(&self, rec: &mut Recorder, wave: &[(usize, Request)]) {
        for (own, shared) in self.caches.iter().zip(&self.shared) {
            let width = shared.k.len() / self.room.shared;
            let mut slot = 0;
            for (_, request) in wave {
                for (from, to) in [(&shared.k, &own.k), (&shared.v, &own.v)] {
                    from.copy_to(rec, &to.slice(slot * width, from.len()));
                }
                slot += request.prompt.len();
            }
        }
    }

    /// Decodes a wave to its end, and calls `look` after each read of the ids.
    pub async fn run(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder,
        pass: Pass<'_>,
        wave: &[(usize, Request<'_>)],
        settings: &SamplingParams,
        look: WaveLook<'_>,
    ) -> Result<()> {
        let mut rec = Recorder::new(gpu);
        let vocab = decoder.config().vocab;
        let (mut rows, sources) = self.rows_of(wave, settings, vocab);
        let mut packed = Packed::default();
        let mut slot = 0;
        for (_, request) in wave {
            packed.push_rest(request.prompt, self.room.shared, slot);
            slot += request.prompt.len() as u32;
        }
        self.prefill.load(&mut rec, &packed)?;
        self.copy_beginning(&mut rec, wave);
        self.source.write_u32(gpu, &sources);
        self.settings.write_u32(gpu, &settings.words(vocab).repeat(rows.len()));
        let mut live: Vec<usize> = (0..rows.len()).collect();
        self.load_rows(gpu, &rows, &live);
        let hidden = decoder.hidden(&mut rec, pass, &self.prefill, Some(&self.caches))?;
        decoder.next_logits(&mut rec, pass, &self.prefill, hidden, &self.source, rows.len())?;
        self.draw(&mut rec, settings, &self.prefill, (rows.len(), vocab), 0)?;
        let step = Pass { decoding: true, sparse: true, ..pass };
        let mut column = 1;
        loop {
            // The steps until the next look, up to the length limit, where all rows are finished.
            let drawn = live.first().map_or(0, |&r| rows[r].ids.len());
            while column < SYNC_STEPS && drawn + column < settings.max_new_tokens as usize {
                let hidden = decoder.hidden(&mut rec, step, &self.decode, Some(&self.caches))?;
                decoder.next_logits(&mut rec, step, &self.decode, hidden, &self.own, live.len())?;
                self.draw(&mut rec, settings, &self.decode, (live.len(), vocab), column)?;
                column += 1;
            }
            rec.submit();
            let history = self.history.slice(0, live.len() * SYNC_STEPS).read_u32(gpu).await?;
            let tokens = collect(&mut rows, &live, &history, column, vocab)?;
            let before = live.len();
            let mut done = Vec::new();
            live.retain(|&r| match finished(&rows[r].ids, settings) {
                Some(answer) => {
                    done.push((&rows[r], answer));
                    false
                }
                None => true,
            });
            look(done.len(), tokens, &rows, done)?;
            if live.is_empty() {
                return Ok(());
            }
            if live.len() < before {
                self.load_rows(gpu, &rows, &live);
            }
            self.decode.resize(live.len(), self.mean_keys(&rows, &live));
            column = 0;
        }
    }

    fn mean_keys(&self, rows: &[Sequence], live: &[usize]) -> usize {
        let keys = |r: &Sequence| (r.prompt[1] - r.prompt[0]) as usize + r.ids.len() + SYNC_STEPS;
        live.iter().map(|&r| keys(&rows[r])).sum::<usize>() / live.len().max(1)
    }

    /// The wave's rows, and the index among the computed prompt tokens of the one that predicts the first
    /// token of each.
    fn rows_of(
        &self,
        wave: &[(usize, Request)],
        settings: &SamplingParams,
        vocab: usize,
    ) -> (Vec<Sequence>, Vec<u32>) {
        let (mut rows, mut sources) = (Vec::new(), Vec::new());
        let (mut start, mut computed) = (0, 0);
        let prompts: usize = wave.iter().map(|(_, r)| r.prompt.len()).sum();
        let first_segment = (prompts + SPARE_SLOTS) as u32;
        for (request, r) in wave {
            let end = start + r.prompt.len() as u32;
            computed += (r.prompt.len() - self.room.shared) as u32;
            let seen = (settings.repetition_penalty != 1.0).then(|| bits(r.prompt, vocab));
            for sample in 0..r.samples as u32 {
                sources.push(computed - 1);
                rows.push(Sequence {
                    request: *request,
                    index: r.index,
                    sample: r.first_sample + sample,
                    prompt: [start, end],
                    segment: first_segment + rows.len() as u32 * settings.max_new_tokens,
                    ids: Vec::new(),
                    seen: seen.clone(),
                });
            }
            start = end;
        }
        (rows, sources)
    }

    /// Uploads the tables of the live rows, in their state before the next token is sampled.
    fn load_rows(&mut self, gpu: &Gpu, rows: &[Sequence], live: &[usize]) {
        let (mut tokens, mut ranges, mut state, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in live.iter().map(|&r| &rows[r]) {
            let [start, end] = row.prompt;
            let drawn = row.ids.len() as u32;
            // The kernel advances position, slot and range after every sampled token. Before the first one
            // they are one short of the answer's first token.
            let id = row.ids.last().copied().unwrap_or(0);
            let at = (end - start + drawn).wrapping_sub(1);
            tokens.push([id, at, (row.segment + drawn).wrapping_sub(1), 0]);
            ranges.push([start, end, row.segment, row.segment + drawn]);
            state.push([row.index, row.sample, drawn, 0]);
            seen.extend(row.seen.iter().flatten());
        }
        self.decode.tokens.write_u32(gpu, tokens.as_flattened());
        self.decode.ranges.write_u32(gpu, ranges.as_flattened());
        self.state.write_u32(gpu, state.as_flattened());
        self.seen.write_u32(gpu, &seen);
        self.decode.resize(live.len(), self.mean_keys(rows, live));
    }

    fn draw(
        &self,
        rec: &mut Recorder,
        settings: &SamplingParams,
        logits: &Workspace,
        size: (usize, usize),
        column: usize,
    ) -> Result<()> {
        let rows = Rows {
            logits: &logits.logits,
            seen: &self.seen,
            state: &self.state,
            tokens: &self.decode.tokens,
            ranges: &self.decode.ranges,
            history: &self.history,
            settings: &self.settings,
        };
        kernel::forward(rec, &Common::of([settings]), rows, size, (column, SYNC_STEPS))
    }
}

/// The ids of a prompt as a bit set.
pub(super) fn bits(prompt: &[u32], vocab: usize) -> Vec<u32> {
    let mut words = vec![0; vocab.div_ceil(32)];
    // Ids outside the vocabulary are refused when the prompt is loaded.
    let known = prompt.iter().filter(|&&id| (id as usize) < vocab);
    known.for_each(|&id| words[id as usize / 32] |= 1 << (id % 32));
    words
}

/// Appends the sampled ids to the rows. Returns their number.
fn collect(
    rows: &mut [Sequence],
    live: &[usize],
    history: &[u32],
    columns: usize,
    vocab: usize,
) -> Result<usize> {
    let mut count = 0;
    for (drawn, &r) in history.chunks_exact(SYNC_STEPS).zip(live) {
        for &id in drawn[..columns].iter().take_while(|&&id| id != NONE) {
            if id as usize >= vocab {
                break;
            }
            rows[r].ids.push(id);
            if let Some(seen) = &mut rows[r].seen {
                seen[id as usize / 32] |= 1 << (id % 32);
            }
            count += 1;
        }
        if drawn[0] == NONE {
            return Err(Error::not_finite(format!("sampling, prompt {}", rows[r].index), "logits"));
        }
    }
    Ok(count)
}

/// The answer, if its last token ends it or it has as many tokens as it may have.
pub(super) fn finished(ids: &[u32], settings: &SamplingParams) -> Option<Answer> {
    let ended = ids.last().is_some_and(|id| settings.ends.contains(id));
    let cut = ids.len() >= settings.max_new_tokens as usize;
    (ended || cut).then(|| Answer { ids: ids.to_vec(), ended })
}
