//! A wave: prompts whose answers are decoded together, with its buffers.

use super::room::Room;
use super::rows::{Drawn, Row, RowBuffers};
use super::{Request, SPARE_SLOTS, SYNC_STEPS, SamplingParams, WaveLook};
use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::Common;
use crate::model::Decoder;
use crate::nn::{KvCache, Pass};

/// The host's record of a row that is being decoded.
pub(super) struct Sequence {
    pub request: usize,
    index: u32,
    pub sample: u32,
    /// As [`Row::slots`].
    slots: [u32; 3],
    pub drawn: Drawn,
}

impl Sequence {
    fn row<'a>(&'a self, settings: &'a SamplingParams) -> Row<'a> {
        // The slot before an answer is never read, whatever is computed there again.
        let (slots, counters) = (self.slots, [self.index, self.sample]);
        Row { slots, before: 0, counters, drawn: &self.drawn, settings }
    }
}

/// The buffers of a wave.
pub(super) struct Wave {
    room: Room,
    buffers: RowBuffers,
    caches: Vec<KvCache>,
    /// The keys and values of the beginning that all prompts share; copied to each prompt's own.
    shared: Vec<KvCache>,
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
        Ok(Self {
            room,
            buffers: RowBuffers::new(memory, decoder, decoder.ranks(), own_tokens.max(shared), rows)?,
            caches: decoder.caches(memory, prompt_tokens + SPARE_SLOTS + rows * max_new)?,
            shared: if shared == 0 { Vec::new() } else { decoder.caches(memory, shared)? },
        })
    }

    /// Computes the keys and values of `beginning`, with which all prompts of the coming waves begin.
    pub fn begin(&mut self, gpu: &Gpu, decoder: &Decoder, pass: Pass<'_>, beginning: &[u32]) -> Result<()> {
        if beginning.is_empty() {
            return Ok(());
        }
        let mut rec = Recorder::new(gpu);
        let packed = Packed::new(&[Group { prompt: beginning, responses: Vec::new() }]);
        self.buffers.prefill.load(&mut rec, &packed)?;
        decoder.hidden(&mut rec, pass, &self.buffers.prefill, Some(&self.shared))?;
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
        self.buffers.prefill.load(&mut rec, &packed)?;
        self.copy_beginning(&mut rec, wave);
        self.buffers.source.write_u32(gpu, &sources);
        let common = Common::of([settings]);
        let mut live: Vec<usize> = (0..rows.len()).collect();
        self.buffers.load(gpu, &live_rows(&rows, &live, settings));
        let RowBuffers { prefill, source, .. } = &self.buffers;
        let hidden = decoder.hidden(&mut rec, pass, prefill, Some(&self.caches))?;
        decoder.next_logits(&mut rec, pass, prefill, hidden, source, rows.len())?;
        self.buffers.draw(&mut rec, &common, &prefill.logits, rows.len(), 0)?;
        let step = Pass { decoding: true, sparse: true, ..pass };
        let mut column = 1;
        loop {
            // The steps until the next look, up to the length limit, where all rows are finished.
            let drawn = live.first().map_or(0, |&r| rows[r].drawn.ids.len());
            while column < SYNC_STEPS && drawn + column < settings.max_new_tokens as usize {
                let RowBuffers { decode, own, .. } = &self.buffers;
                let hidden = decoder.hidden(&mut rec, step, decode, Some(&self.caches))?;
                decoder.next_logits(&mut rec, step, decode, hidden, own, live.len())?;
                self.buffers.draw(&mut rec, &common, &decode.logits, live.len(), column)?;
                column += 1;
            }
            rec.submit();
            let history = self.buffers.history(gpu, live.len()).await?;
            let mut tokens = 0;
            for (drawn, &r) in history.chunks_exact(SYNC_STEPS).zip(&live) {
                let Sequence { drawn: own, index, .. } = &mut rows[r];
                let place = || format!("sampling, prompt {index}");
                tokens += own.extend(&drawn[..column], vocab, &place)?;
            }
            let before = live.len();
            let mut done = Vec::new();
            live.retain(|&r| match rows[r].drawn.finished(settings) {
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
            let left = live_rows(&rows, &live, settings);
            if live.len() < before {
                self.buffers.load(gpu, &left);
            } else {
                self.buffers.resize(&left);
            }
            column = 0;
        }
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
            let begun = Drawn::new(r.prompt, settings, vocab);
            for sample in 0..r.samples as u32 {
                sources.push(computed - 1);
                rows.push(Sequence {
                    request: *request,
                    index: r.index,
                    sample: r.first_sample + sample,
                    slots: [start, end, first_segment + rows.len() as u32 * settings.max_new_tokens],
                    drawn: begun.clone(),
                });
            }
            start = end;
        }
        (rows, sources)
    }
}

/// The rows that are not finished.
fn live_rows<'a>(rows: &'a [Sequence], live: &[usize], settings: &'a SamplingParams) -> Vec<Row<'a>> {
    live.iter().map(|&r| rows[r].row(settings)).collect()
}
