//! Sampling on the device: many prompts at once, a prompt's keys and values shared by all its samples.
//!
//! The random number for a token depends only on (seed, prompt, sample, step). Results therefore do not
//! depend on which rows share a batch, nor on when finished rows leave it. The host reads the sampled ids
//! only every few steps.

use crate::config::{AnchorConfig, MAX_NUM_SEQS};
use crate::data::packing::{Group, Packed};
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::{self as kernel, NONE, Rows};
use crate::model::{Capacity, Decoder, DecoderConfig, Workspace, chunk_rows};
use crate::nn::{KvCache, Pass};
use crate::{Error, Result};

pub use kernel::{MAX_ENDS, SamplingParams};

/// A prompt and the number of answers to sample for it.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The prompt's tokens; at least one.
    pub prompt: &'a [u32],
    /// Index of the first answer: part of the random counter.
    pub first_sample: u32,
    /// Number of answers to sample.
    pub samples: usize,
    /// The prompt's index: part of the random counter.
    pub index: u32,
}

/// One sampled answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Token ids; the last is an end token unless the answer was cut off.
    pub ids: Vec<u32>,
    /// Whether it ended with an end token, not at the length limit.
    pub ended: bool,
}

/// The sampling parameters of `config`.
pub fn sampling_params(config: &AnchorConfig, seed: u32, ends: &[u32]) -> SamplingParams {
    SamplingParams {
        temperature: config.temperature as f32,
        top_k: config.top_k as u32,
        top_p: config.top_p as f32,
        repetition_penalty: config.repetition_penalty as f32,
        max_new_tokens: config.max_new_tokens as u32,
        seed,
        ends: ends.to_vec(),
    }
}

/// The most prompt tokens that are prefilled together, unless one prompt alone is longer.
const PREFILL_TOKENS: usize = 1536;
/// Steps after which the host reads the sampled ids (a "look").
const SYNC_STEPS: usize = 8;

/// Cache slots between the prompts and the first answer. A row that ends with its first token stays at the
/// slot before its segment, and the steps until the next look write to that slot. For the first row this slot
/// must not be that of a prompt's last token. (For other rows it is the last slot of the previous answer,
/// which is never read: the last token of an answer is not fed back into the model.)
const SPARE_SLOTS: usize = 1;

/// What a sampler reports to its caller: the numbers of answers finished and of tokens sampled since
/// the last report.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

/// The progress of a sampler since the last look.
pub(crate) struct Looked<'a> {
    /// Number of answers finished.
    pub answers: usize,
    /// Number of tokens sampled.
    pub tokens: usize,
    /// Requests whose answers are now all finished: the request's index, and its answers.
    pub complete: Vec<(usize, Vec<Answer>)>,
    /// The current rows of the wave.
    rows: &'a [Sequence],
}

type Look<'a> = &'a mut dyn FnMut(Looked) -> Result<()>;

/// The callback of one wave: the numbers of answers finished and of tokens sampled since its last call, all
/// rows, and the newly finished rows, each with its answer.
type WaveLook<'a> = &'a mut dyn FnMut(usize, usize, &[Sequence], Vec<(&Sequence, Answer)>) -> Result<()>;

/// Samples answers for all requests. They are returned in the order of the requests and of their samples.
///
/// # Errors
/// A prompt that leaves no room in the context, or non-finite logits.
pub async fn generate(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    requests: &[Request<'_>],
    settings: &SamplingParams,
    progress: Progress<'_>,
) -> Result<Vec<Vec<Answer>>> {
    let room =
        Room::of(gpu, decoder.config(), &lengths(requests), settings.max_new_tokens as usize, MAX_NUM_SEQS);
    generate_in(room, gpu, decoder, pass, requests, settings, progress).await
}

/// Like [`generate`], in buffers of `room`.
pub(crate) async fn generate_in(
    room: Room,
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    requests: &[Request<'_>],
    settings: &SamplingParams,
    progress: Progress<'_>,
) -> Result<Vec<Vec<Answer>>> {
    let mut answers: Vec<Vec<Answer>> = requests.iter().map(|_| Vec::new()).collect();
    let mut look = |looked: Looked| {
        looked.complete.into_iter().for_each(|(request, all)| answers[request] = all);
        progress(looked.answers, looked.tokens)
    };
    draw(room, gpu, decoder, pass, requests, settings, &mut look).await?;
    Ok(answers)
}

/// Samples one answer, the first of `request`, and reports its tokens as they are sampled: `each` is called
/// every few tokens with all ids so far. The tokens are the same as those of [`generate`].
///
/// # Errors
/// As [`generate`].
pub async fn stream(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    request: &Request<'_>,
    settings: &SamplingParams,
    each: &mut dyn FnMut(&[u32]) -> Result<()>,
) -> Result<Answer> {
    let request = [Request { samples: 1, ..request.clone() }];
    let mut answer = None;
    let mut look = |looked: Looked| {
        answer = looked.complete.into_iter().flat_map(|(_, answers)| answers).next();
        looked.rows.first().map_or(Ok(()), |row| each(&row.ids))
    };
    let room =
        Room::of(gpu, decoder.config(), &lengths(&request), settings.max_new_tokens as usize, MAX_NUM_SEQS);
    draw(room, gpu, decoder, pass, &request, settings, &mut look).await?;
    answer.ok_or_else(|| Error::Internal { doing: "sampling", message: "no answer returned".into() })
}

/// The number of prompt tokens and of answers of each request.
fn lengths(requests: &[Request]) -> Vec<(usize, usize)> {
    requests.iter().map(|request| (request.prompt.len(), request.samples)).collect()
}

/// Samples answers for all requests; `look` is called every few tokens with the progress, and with a
/// request's answers when they are all finished.
///
/// # Errors
/// As [`generate`], and what `look` returns.
pub(crate) async fn draw(
    room: Room,
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    requests: &[Request<'_>],
    settings: &SamplingParams,
    look: Look<'_>,
) -> Result<()> {
    let most = settings.max_new_tokens as usize;
    for request in requests {
        decoder.check_context(&format!("prompt {}", request.index), request.prompt.len() + most)?;
    }
    let mut collected = Collected(requests.iter().map(|request| vec![None; request.samples]).collect());
    if requests.is_empty() {
        return Ok(());
    }
    let mut buffers = Wave::new(gpu, decoder, room)?;
    for wave in waves(&lengths(requests), room.rows, room.prompt_tokens) {
        let part = |Piece { request, first, samples }: Piece| {
            let whole = &requests[request];
            (request, Request { first_sample: whole.first_sample + first as u32, samples, ..whole.clone() })
        };
        let wave: Vec<(usize, Request)> = wave.into_iter().map(part).collect();
        let mut finished = |answers, tokens, rows: &[Sequence], done: Vec<(&Sequence, Answer)>| {
            let complete = done.into_iter().filter_map(|(row, answer)| {
                let sample = row.sample - requests[row.request].first_sample;
                Some((row.request, collected.add(row.request, sample as usize, answer)?))
            });
            look(Looked { answers, tokens, complete: complete.collect(), rows })
        };
        buffers.run(gpu, decoder, pass, &wave, settings, &mut finished).await?;
    }
    Ok(())
}

/// The answers so far, by request and sample.
struct Collected(Vec<Vec<Option<Answer>>>);

impl Collected {
    /// Adds one answer. Returns all answers of the request if this was the last one.
    fn add(&mut self, request: usize, sample: usize, answer: Answer) -> Option<Vec<Answer>> {
        let all = &mut self.0[request];
        all[sample] = Some(answer);
        if all.iter().all(Option::is_some) { std::mem::take(all).into_iter().collect() } else { None }
    }
}

/// Consecutive samples of a request.
struct Piece {
    request: usize,
    first: usize,
    samples: usize,
}

/// Splits requests, given as (prompt tokens, samples), into waves that are decoded together. Requests keep
/// their order. A wave takes requests while they fit into `rows` and, after its first one, into
/// `prompt_tokens`. A request with more samples than `rows` is split into pieces.
fn waves(requests: &[(usize, usize)], rows: usize, prompt_tokens: usize) -> Vec<Vec<Piece>> {
    let mut waves: Vec<Vec<Piece>> = Vec::new();
    let mut used = (0, 0);
    for (request, &(prompt, all)) in requests.iter().enumerate() {
        for first in (0..all).step_by(rows) {
            let samples = rows.min(all - first);
            let piece = Piece { request, first, samples };
            used = (used.0 + samples, used.1 + prompt);
            match waves.last_mut().filter(|_| used.0 <= rows && used.1 <= prompt_tokens) {
                Some(wave) => wave.push(piece),
                None => {
                    used = (samples, prompt);
                    waves.push(vec![piece]);
                }
            }
        }
    }
    waves
}

/// Sizes of a sampler's buffers: the most rows, prompt tokens and new tokens that a wave may have. Buffers
/// that are large enough for some requests are large enough for any part of them, in any number of waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    rows: usize,
    prompt_tokens: usize,
    max_new: usize,
}

impl Room {
    /// The room that requests, given as (prompt tokens, samples), need for up to `max_new` new tokens, with
    /// at most `most_rows` answers decoded together.
    pub fn of(
        memory: &Memory,
        config: &DecoderConfig,
        requests: &[(usize, usize)],
        max_new: usize,
        most_rows: usize,
    ) -> Self {
        // A layer's keys must fit into one binding, and the logits of all rows into one chunk.
        let slots = memory.max_binding() as usize / (4 * config.kv_heads * config.head_dim);
        let cached = slots.saturating_sub(PREFILL_TOKENS) / max_new.max(1);
        let most = chunk_rows(config.vocab, most_rows).min(most_rows).min(cached).max(1);
        let mut room = Self { rows: 1, prompt_tokens: 1, max_new };
        for wave in waves(requests, most, PREFILL_TOKENS) {
            room.rows = room.rows.max(wave.iter().map(|piece| piece.samples).sum());
            let prompt_tokens = wave.iter().map(|piece| requests[piece.request].0).sum();
            room.prompt_tokens = room.prompt_tokens.max(prompt_tokens);
        }
        room
    }

    /// The most answers that are decoded together.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Allocates a sampler's buffers, and the one from which the host reads ids.
    pub fn allocate(self, memory: &Memory, decoder: &Decoder) -> Result<impl Sized + use<>> {
        let read = self.rows * SYNC_STEPS;
        let read = Tensor::new(memory, Purpose::Staging, "drawn ids", read, DType::U32)?;
        Ok((Wave::new(memory, decoder, self)?, read))
    }
}

/// The host's record of a row that is being decoded.
struct Sequence {
    request: usize,
    index: u32,
    sample: u32,
    prompt: [u32; 2],
    /// The cache slot of the answer's first token.
    segment: u32,
    ids: Vec<u32>,
    seen: Option<Vec<u32>>,
}

/// The buffers of a wave.
struct Wave {
    prefill: Workspace,
    decode: Workspace,
    caches: Vec<KvCache>,
    /// `(rows)`: the index of the hidden state that predicts a row's next token.
    source: Tensor,
    /// `(rows)`: 0, 1, 2...
    own: Tensor,
    seen: Tensor,
    state: Tensor,
    history: Tensor,
}

impl Wave {
    fn new(memory: &Memory, decoder: &Decoder, room: Room) -> Result<Self> {
        let Room { rows, prompt_tokens, max_new } = room;
        // Every prompt has a row, so there are no more prompts than rows.
        let capacity = |tokens| Capacity { tokens, rows, sequences: 1, groups: rows, training: None };
        let table = |label, count| Tensor::new(memory, Purpose::Staging, label, count, DType::U32);
        let own: Vec<u32> = (0..rows as u32).collect();
        Ok(Self {
            prefill: decoder.workspace(memory, capacity(prompt_tokens))?,
            decode: decoder.workspace(memory, capacity(rows))?,
            caches: decoder.caches(memory, prompt_tokens + SPARE_SLOTS + rows * max_new)?,
            source: table("row sources", rows)?,
            own: Tensor::from_u32(memory, Purpose::Staging, "row numbers", &own)?,
            seen: table("seen ids", rows * decoder.config().vocab.div_ceil(32))?,
            state: table("row state", 4 * rows)?,
            history: table("drawn ids", rows * SYNC_STEPS)?,
        })
    }

    /// Decodes a wave to its end, and calls `look` after each read of the ids.
    async fn run(
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
        let groups: Vec<Group> =
            wave.iter().map(|(_, r)| Group { prompt: r.prompt, responses: Vec::new() }).collect();
        self.prefill.load(&mut rec, &Packed::new(&groups))?;
        self.source.write_u32(gpu, &sources);
        let mut live: Vec<usize> = (0..rows.len()).collect();
        self.load_rows(gpu, &rows, &live);
        let hidden = decoder.hidden(&mut rec, pass, &self.prefill, Some(&self.caches))?;
        decoder.next_logits(&mut rec, pass, &self.prefill, hidden, &self.source, rows.len())?;
        self.draw(&mut rec, settings, &self.prefill, (rows.len(), vocab), 0)?;
        let step = Pass { decoding: true, ..pass };
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
            live.retain(|&r| match finished(&rows[r], settings) {
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

    /// The wave's rows, and the index of the prompt token that predicts the first token of each.
    fn rows_of(
        &self,
        wave: &[(usize, Request)],
        settings: &SamplingParams,
        vocab: usize,
    ) -> (Vec<Sequence>, Vec<u32>) {
        let (mut rows, mut sources) = (Vec::new(), Vec::new());
        let mut start = 0;
        let prompts: usize = wave.iter().map(|(_, r)| r.prompt.len()).sum();
        let first_segment = (prompts + SPARE_SLOTS) as u32;
        for (request, r) in wave {
            let end = start + r.prompt.len() as u32;
            let seen = (settings.repetition_penalty != 1.0).then(|| bits(r.prompt, vocab));
            for sample in 0..r.samples as u32 {
                sources.push(end - 1);
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
        };
        kernel::forward(rec, settings, rows, size, (column, SYNC_STEPS))
    }
}

/// The ids of a prompt as a bit set.
fn bits(prompt: &[u32], vocab: usize) -> Vec<u32> {
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

fn finished(row: &Sequence, settings: &SamplingParams) -> Option<Answer> {
    let ended = row.ids.last().is_some_and(|id| settings.ends.contains(id));
    let cut = row.ids.len() >= settings.max_new_tokens as usize;
    (ended || cut).then(|| Answer { ids: row.ids.clone(), ended })
}
