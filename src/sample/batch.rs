//! Answers to requests that come and go: decoded together, each with its own settings, adapter and length.
//!
//! A [`Batch`] has a number of seats. Each has room in the cache for the keys and values of one context. A
//! request takes a free seat: the one whose cache begins like its prompt, if there is one, so that only the
//! rest of the prompt is computed. That is how a conversation goes on without being read again. If a
//! beginning is in another request's seat, its keys and values are copied.

use std::time::Instant;

use super::wave::{bits, finished};
use super::{Answer, SYNC_STEPS, SamplingParams};
use crate::data::packing::Packed;
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::{self as kernel, Common, NONE, Rows};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{KvCache, Pass, Ranks};
use crate::{Error, Result};

/// The most prompt tokens that are computed in one turn.
const PREFILL_TOKENS: usize = 512;
/// The fewest tokens of a known beginning that are worth a copy.
const LEAST_COPIED: usize = 16;
/// The time between two looks at the drawn tokens, in seconds, if that is several tokens: what a reader sees
/// as steady.
const LOOK_SECONDS: f64 = 0.1;
/// The most alternatives whose log-probs can be asked for, as in OpenAI's protocol.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// A request: a prompt whose answer is to be sampled.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// The settings. The end tokens must be the same for all jobs.
    pub settings: SamplingParams,
    /// The answer's number among several to the prompt: part of the random counter.
    pub sample: u32,
    /// The key of the model that answers; see [`Batch::turn`].
    pub model: u64,
    /// The number of alternatives whose log-probs are wanted, besides the log-prob of each token; `None` for
    /// no log-probs.
    pub top_logprobs: Option<usize>,
}

/// A job's number in its batch.
pub type Ticket = u64;

/// A token's log-prob, under the model's distribution (temperature 1), and those of the most likely tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The sampled token's log-prob, in nats.
    pub logprob: f32,
    /// The most likely tokens with their log-probs, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// What became of a job in a turn.
#[derive(Debug)]
pub struct News {
    /// The job.
    pub ticket: Ticket,
    /// The tokens sampled since the last news. An end token is among them.
    pub ids: Vec<u32>,
    /// One for each of `ids`, if log-probs are wanted; otherwise empty.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens of the prompt that were not computed, because they were in the cache.
    pub cached_tokens: usize,
    /// The whole answer, when it is finished, or what went wrong. The seat is free again.
    pub end: Option<Result<Answer>>,
}

/// The room of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seating {
    /// Jobs that are answered at the same time.
    pub seats: usize,
    /// Tokens of a prompt and its answer.
    pub context: usize,
}

/// The jobs that are being answered, and the buffers for that.
pub struct Batch {
    seating: Seating,
    seats: Vec<Seat>,
    caches: Vec<KvCache>,
    /// `(context, G, head_dim)`: a beginning on its way from one seat to another, because a buffer cannot be
    /// copied to itself.
    carried: Tensor,
    buffers: Buffers,
    /// The logits of a step before they become weights, if log-probs are wanted; allocated at first use.
    kept: Option<Tensor>,
    next_ticket: Ticket,
    /// Mean seconds of a decoding step of late.
    step_seconds: f64,
    /// The vocabulary's size.
    vocab: usize,
}

/// What depends on the ranks of the adapters.
struct Buffers {
    ranks: Ranks,
    prefill: Workspace,
    decode: Workspace,
    /// `(seats)`: the index of the hidden state that predicts a row's next token.
    source: Tensor,
    /// `(seats)`: 0, 1, 2...
    own: Tensor,
    seen: Tensor,
    state: Tensor,
    history: Tensor,
    settings: Tensor,
}

/// One place for a job, with its part of the cache.
#[derive(Default)]
struct Seat {
    /// The model of the cached tokens.
    model: u64,
    /// The tokens whose keys and values are in the seat's part of the cache.
    cached: Vec<u32>,
    job: Option<Running>,
    /// The ticket of the last job: the seat with the lowest has not been used for longest.
    last: Ticket,
}

/// A job that has a seat.
struct Running {
    ticket: Ticket,
    job: Job,
    ids: Vec<u32>,
    /// The prompt's and the answer's ids as a bit set, if there is a repetition penalty.
    seen: Option<Vec<u32>>,
    /// Tokens of the prompt that were in the cache already.
    reused: usize,
}

impl Seat {
    /// The number of tokens of a job's prompt that are in this seat's cache. The last token of a prompt is
    /// always computed: it predicts the answer's first token.
    fn common(&self, job: &Job) -> usize {
        let most = &job.prompt[..job.prompt.len() - 1];
        let same = self.cached.iter().zip(most).take_while(|(a, b)| a == b).count();
        if self.model == job.model { same } else { 0 }
    }
}

impl Batch {
    /// Allocates room for `seating`, for answers of `models`: one base model without and with adapters.
    ///
    /// # Errors
    /// When it exceeds the GPU's memory or the limit of one binding.
    pub fn new(memory: &Memory, models: &[&Decoder], seating: Seating) -> Result<Self> {
        let base = models[0];
        let Seating { seats, context } = seating;
        let width = base.config().kv_heads * base.config().head_dim;
        let slots = seats * context;
        if DType::F32.size(slots * width) as u64 > memory.max_binding() {
            return Err(Error::input(
                "the cache of keys and values",
                format!("at most {} bytes in a layer, this adapter's limit", memory.max_binding()),
                format!("{seats} seats of {context} tokens, {} bytes", DType::F32.size(slots * width)),
                "lower the number of seats or the context",
            ));
        }
        Ok(Self {
            seating,
            seats: (0..seats).map(|_| Seat::default()).collect(),
            caches: base.caches(memory, slots)?,
            carried: Tensor::new(memory, Purpose::KvCache, "carried", context * width, DType::F32)?,
            buffers: Buffers::new(memory, base, ranks(models), seating)?,
            kept: None,
            next_ticket: 1,
            step_seconds: LOOK_SECONDS,
            vocab: base.config().vocab,
        })
    }

    /// Makes room for the adapters of `models`, if they have higher ranks than those so far.
    ///
    /// # Errors
    /// When it exceeds the GPU's memory. The batch then still answers with the models that it had.
    pub fn fit(&mut self, memory: &Memory, models: &[&Decoder]) -> Result<()> {
        let needed = self.buffers.ranks.and(ranks(models));
        if needed != self.buffers.ranks {
            self.buffers = Buffers::new(memory, models[0], needed, self.seating)?;
        }
        Ok(())
    }

    /// Forgets what is cached for a model: its key may be given to another.
    pub fn forget(&mut self, model: u64) {
        for seat in self.seats.iter_mut().filter(|seat| seat.model == model && seat.job.is_none()) {
            seat.cached.clear();
        }
    }

    /// The room.
    pub fn seating(&self) -> Seating {
        self.seating
    }

    /// Whether a seat is free.
    pub fn has_room(&self) -> bool {
        self.seats.iter().any(|seat| seat.job.is_none())
    }

    /// Whether no job is left.
    pub fn is_idle(&self) -> bool {
        self.seats.iter().all(|seat| seat.job.is_none())
    }

    /// The jobs of a model.
    pub fn tickets_of(&self, model: u64) -> Vec<Ticket> {
        let jobs = self.seats.iter().filter_map(|seat| seat.job.as_ref());
        jobs.filter(|running| running.job.model == model).map(|running| running.ticket).collect()
    }

    /// Gives a job a seat, and returns its ticket.
    ///
    /// # Errors
    /// A prompt that is empty, has ids outside the vocabulary, or leaves no room for the answer.
    ///
    /// # Panics
    /// If no seat is free: see [`Batch::has_room`].
    pub fn admit(&mut self, memory: &Memory, job: Job) -> Result<Ticket> {
        let wanted = job.prompt.len() + job.settings.max_new_tokens as usize;
        if job.prompt.is_empty() || wanted > self.seating.context {
            let expected = format!("1 to {} tokens, the answer's included", self.seating.context);
            return Err(Error::input("the prompt", expected, format!("{wanted} tokens"), "shorten it"));
        }
        if let Some(id) = job.prompt.iter().find(|&&id| id as usize >= self.vocab) {
            let expected = format!("ids below {}, the model's vocab_size", self.vocab);
            return Err(Error::input("the prompt", expected, id, "use the model's own tokenizer"));
        }
        if job.top_logprobs.is_some() && self.kept.is_none() {
            let count = self.seating.seats * self.vocab;
            self.kept = Some(Tensor::new(memory, Purpose::Logits, "kept logits", count, DType::F32)?);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let i = self.seat_for(&job);
        let known = self.seats[i].common(&job);
        let seen = (job.settings.repetition_penalty != 1.0).then(|| bits(&job.prompt, self.vocab));
        let seat = &mut self.seats[i];
        seat.model = job.model;
        seat.cached = job.prompt[..known].to_vec();
        seat.last = ticket;
        seat.job = Some(Running { ticket, job, ids: Vec::new(), seen, reused: known });
        Ok(ticket)
    }

    /// The free seat for a job: the one whose cache mostly is the beginning of its prompt, which is how a
    /// conversation goes on, or the one that has not been used for longest.
    fn seat_for(&self, job: &Job) -> usize {
        let free = || self.seats.iter().enumerate().filter(|(_, seat)| seat.job.is_none());
        let goes_on = |seat: &Seat| {
            let known = seat.common(job);
            if 2 * known >= seat.cached.len() { known } else { 0 }
        };
        let longest = free().max_by_key(|(_, seat)| goes_on(seat)).filter(|(_, seat)| goes_on(seat) > 0);
        let oldest = || free().min_by_key(|(_, seat)| seat.last);
        longest.or_else(oldest).expect("a free seat").0
    }

    /// Copies the beginning of a waiting job's prompt from the seat that knows most of it, if that is worth
    /// it.
    fn share(&mut self, rec: &mut Recorder, i: usize) {
        let Some(running) = &self.seats[i].job else { return };
        let commons = self.seats.iter().map(|seat| seat.common(&running.job)).enumerate();
        let (source, known) = commons.max_by_key(|&(_, common)| common).unwrap_or_default();
        if source == i || known < self.seats[i].cached.len() + LEAST_COPIED {
            return;
        }
        for whole in self.caches.iter().flat_map(|cache| [&cache.k, &cache.v]) {
            let width = whole.len() / (self.seating.seats * self.seating.context);
            let part = |seat: usize| whole.slice(seat * self.seating.context * width, known * width);
            let carried = self.carried.slice(0, known * width);
            part(source).copy_to(rec, &carried);
            carried.copy_to(rec, &part(i));
        }
        let seat = &mut self.seats[i];
        if let Some(running) = &mut seat.job {
            seat.cached = running.job.prompt[..known].to_vec();
            running.reused = known;
        }
    }

    /// Drops a job. What it has cached stays, for others that begin the same.
    pub fn cancel(&mut self, ticket: Ticket) {
        for seat in &mut self.seats {
            seat.job.take_if(|running| running.ticket == ticket);
        }
    }

    /// Computes the next part of the prompts that are not computed yet, up to a number of tokens, and then
    /// the next tokens of all answers. `model` finds the model of a key; each has passes of its own.
    ///
    /// # Errors
    /// What the GPU reports; then no news are lost but those of this turn.
    pub async fn turn<'d>(&mut self, gpu: &Gpu, model: &dyn Fn(u64) -> &'d Decoder) -> Result<Vec<News>> {
        let mut news = Vec::new();
        if let Some(key) = self.waiting_model() {
            self.prefill(gpu, model(key), key, &mut news).await?;
        }
        let mut keys: Vec<u64> = self.answering().map(|i| self.seats[i].model).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.decode(gpu, model(key), key, &mut news).await?;
        }
        Ok(news)
    }

    /// The seats whose jobs' prompts are computed, but for the last token of the answer so far.
    fn answering(&self) -> impl Iterator<Item = usize> {
        let live = |seat: &Seat| seat.job.as_ref().is_some_and(|running| !running.ids.is_empty());
        (0..self.seats.len()).filter(move |&i| live(&self.seats[i]))
    }

    /// The model of the job that has waited longest for its prompt's pass.
    fn waiting_model(&self) -> Option<u64> {
        let jobs = self.seats.iter().filter_map(|seat| seat.job.as_ref());
        let waiting = jobs.filter(|running| running.ids.is_empty());
        waiting.min_by_key(|running| running.ticket).map(|running| running.job.model)
    }

    /// Computes prompts of a model, the oldest job's first. Jobs whose prompts are complete get their first
    /// token.
    async fn prefill(&mut self, gpu: &Gpu, decoder: &Decoder, key: u64, news: &mut Vec<News>) -> Result<()> {
        let mut waiting: Vec<(Ticket, usize)> = Vec::new();
        for (i, seat) in self.seats.iter().enumerate() {
            let running =
                seat.job.as_ref().filter(|running| running.ids.is_empty() && running.job.model == key);
            waiting.extend(running.map(|running| (running.ticket, i)));
        }
        waiting.sort_unstable();
        let mut rec = Recorder::new(gpu);
        let (mut packed, mut budget) = (Packed::default(), PREFILL_TOKENS);
        let (mut complete, mut sources) = (Vec::new(), Vec::new());
        let mut computed: Vec<(usize, usize)> = Vec::new();
        for (_, i) in waiting {
            self.share(&mut rec, i);
            let seat = &self.seats[i];
            let Some(running) = &seat.job else { continue };
            let (known, all) = (seat.cached.len(), running.job.prompt.len());
            // What another one computes in this pass can be copied in the next.
            let begins_like = |&(other, _): &(usize, usize)| {
                let other = self.seats[other].job.as_ref().map_or(&[][..], |other| &other.job.prompt);
                let same =
                    other.iter().zip(&running.job.prompt[..all - 1]).take_while(|(a, b)| a == b).count();
                same >= known + LEAST_COPIED
            };
            if computed.iter().any(begins_like) {
                continue;
            }
            let until = all.min(known + budget);
            if until == known {
                break;
            }
            budget -= until - known;
            packed.push_rest(&running.job.prompt[..until], known, (i * self.seating.context) as u32);
            computed.push((i, until));
            if until == all {
                complete.push(i);
                sources.push(packed.tokens.len() as u32 - 1);
            }
        }
        let pass = Pass { sparse: true, ..decoder.policy() };
        self.buffers.prefill.load(&mut rec, &packed)?;
        let hidden = decoder.hidden(&mut rec, pass, &self.buffers.prefill, Some(&self.caches))?.clone();
        for (i, until) in computed {
            let seat = &mut self.seats[i];
            seat.cached =
                seat.job.as_ref().map_or_else(Vec::new, |running| running.job.prompt[..until].to_vec());
        }
        if complete.is_empty() {
            rec.submit();
            return gpu.finished().await;
        }
        self.load_rows(gpu, &complete);
        self.buffers.source.write_u32(gpu, &sources);
        let (prefill, source) = (&self.buffers.prefill, &self.buffers.source);
        decoder.next_logits(&mut rec, pass, prefill, &hidden, source, complete.len())?;
        self.draw(&mut rec, &self.buffers.prefill.logits, &complete, 0)?;
        self.look(gpu, rec, &complete, 1, news).await
    }

    /// Samples the next tokens of all answers of a model.
    async fn decode(&mut self, gpu: &Gpu, decoder: &Decoder, key: u64, news: &mut Vec<News>) -> Result<()> {
        let rows: Vec<usize> = self.answering().filter(|&i| self.seats[i].model == key).collect();
        let running = || rows.iter().filter_map(|&i| self.seats[i].job.as_ref());
        let left = |running: &Running| running.job.settings.max_new_tokens as usize - running.ids.len();
        let most = running().map(left).max().unwrap_or(1).min(SYNC_STEPS);
        let steps = match self.want_logprobs(&rows) {
            true => 1,
            false => ((LOOK_SECONDS / self.step_seconds) as usize).clamp(1, most),
        };
        let started = Instant::now();
        let mut rec = Recorder::new(gpu);
        let pass = Pass { decoding: true, sparse: true, ..decoder.policy() };
        self.load_rows(gpu, &rows);
        for column in 0..steps {
            let (decode, own) = (&self.buffers.decode, &self.buffers.own);
            let hidden = decoder.hidden(&mut rec, pass, decode, Some(&self.caches))?;
            decoder.next_logits(&mut rec, pass, decode, hidden, own, rows.len())?;
            self.draw(&mut rec, &self.buffers.decode.logits, &rows, column)?;
        }
        self.look(gpu, rec, &rows, steps, news).await?;
        let seconds = started.elapsed().as_secs_f64() / steps as f64;
        self.step_seconds += 0.3 * (seconds - self.step_seconds);
        Ok(())
    }

    /// Uploads the tables of these seats' rows, in their state before the next token is sampled.
    fn load_rows(&mut self, gpu: &Gpu, rows: &[usize]) {
        let (mut tokens, mut ranges, mut state) = (Vec::new(), Vec::new(), Vec::new());
        let (mut settings, mut seen, mut keys) = (Vec::new(), Vec::new(), 0);
        let words = self.vocab.div_ceil(32);
        let mut penalised = false;
        for &i in rows {
            let Some(running) = &self.seats[i].job else { continue };
            let (prompt, drawn) = (&running.job.prompt, running.ids.len() as u32);
            let start = (i * self.seating.context) as u32;
            let (at, end) = (prompt.len() as u32 + drawn - 1, start + prompt.len() as u32);
            // The kernel advances position, slot and range after a sampled token. A row that ends with its
            // first token is not advanced: until the next look it computes the prompt's last token again.
            let id = running.ids.last().or(prompt.last()).copied().unwrap_or(0);
            tokens.push([id, at, start + at, 0]);
            ranges.push([start, end, end, end + drawn]);
            state.push([0, running.job.sample, drawn, 0]);
            settings.push(running.job.settings.words(self.vocab));
            penalised |= running.seen.is_some();
            keys += prompt.len() + running.ids.len() + SYNC_STEPS;
        }
        if penalised {
            for &i in rows {
                let own = self.seats[i].job.as_ref().and_then(|running| running.seen.as_ref());
                seen.extend(own.cloned().unwrap_or_else(|| vec![0; words]));
            }
        }
        let buffers = &mut self.buffers;
        buffers.decode.tokens.write_u32(gpu, tokens.as_flattened());
        buffers.decode.ranges.write_u32(gpu, ranges.as_flattened());
        buffers.state.write_u32(gpu, state.as_flattened());
        buffers.settings.write_u32(gpu, settings.as_flattened());
        buffers.seen.write_u32(gpu, &seen);
        buffers.decode.resize(rows.len(), keys / rows.len().max(1));
    }

    /// Whether one of these seats' jobs wants log-probs.
    fn want_logprobs(&self, rows: &[usize]) -> bool {
        let wants = |&i: &usize| self.seats[i].job.as_ref().is_some_and(|r| r.job.top_logprobs.is_some());
        rows.iter().any(wants)
    }

    /// Records the draw of a token from each row of `logits`. If log-probs are wanted, the logits are copied
    /// before, because the draw overwrites them.
    fn draw(&self, rec: &mut Recorder, logits: &Tensor, rows: &[usize], column: usize) -> Result<()> {
        if let Some(kept) = self.kept.as_ref().filter(|_| self.want_logprobs(rows)) {
            logits.slice(0, rows.len() * self.vocab).copy_to(rec, kept);
        }
        let Buffers { seen, state, decode, history, settings, .. } = &self.buffers;
        let (tokens, ranges) = (&decode.tokens, &decode.ranges);
        let table = Rows { logits, seen, state, tokens, ranges, history, settings };
        let jobs = rows.iter().filter_map(|&i| self.seats[i].job.as_ref());
        let common = Common::of(jobs.map(|running| &running.job.settings));
        kernel::forward(rec, &common, table, (rows.len(), self.vocab), (column, SYNC_STEPS))
    }

    /// Reads what was drawn for these seats in `columns` steps.
    async fn look(
        &mut self,
        gpu: &Gpu,
        mut rec: Recorder<'_>,
        rows: &[usize],
        columns: usize,
        news: &mut Vec<News>,
    ) -> Result<()> {
        rec.submit();
        let history = self.buffers.history.slice(0, rows.len() * SYNC_STEPS).read_u32(gpu).await?;
        for (r, (&i, drawn)) in rows.iter().zip(history.chunks_exact(SYNC_STEPS)).enumerate() {
            let Some(top) = self.seats[i].job.as_ref().map(|running| running.job.top_logprobs) else {
                continue;
            };
            let own = drawn[..columns].iter().copied().take_while(|&id| (id as usize) < self.vocab);
            let ids: Vec<u32> = own.collect();
            let mut logprobs = Vec::new();
            if let (Some(top), Some(kept), Some(&id)) = (top, &self.kept, ids.first()) {
                let logits = kept.slice(r * self.vocab, self.vocab).read_f32(gpu).await?;
                logprobs.push(logprob(&logits, id, top));
            }
            let seat = &mut self.seats[i];
            let Some(running) = &mut seat.job else { continue };
            for &id in &ids {
                running.ids.push(id);
                if let Some(seen) = &mut running.seen {
                    seen[id as usize / 32] |= 1 << (id % 32);
                }
            }
            // The last token is not fed to the model yet.
            let fed = running.ids.len().saturating_sub(1);
            seat.cached = [&running.job.prompt, &running.ids[..fed]].concat();
            let end = match drawn[0] == NONE || ids.is_empty() {
                true => Some(Err(Error::not_finite("sampling".to_owned(), "logits"))),
                false => finished(&running.ids, &running.job.settings).map(Ok),
            };
            let (ticket, cached_tokens) = (running.ticket, running.reused);
            if matches!(end, Some(Err(_))) {
                // What made the logits invalid may be in the cache.
                seat.cached.clear();
            }
            if end.is_some() {
                seat.job = None;
            }
            news.push(News { ticket, ids, logprobs, cached_tokens, end });
        }
        Ok(())
    }
}

impl Buffers {
    fn new(memory: &Memory, base: &Decoder, ranks: Ranks, seating: Seating) -> Result<Self> {
        let Seating { seats, context } = seating;
        let capacity = |tokens| Capacity { tokens, rows: seats, sequences: 1, groups: seats, training: None };
        let table = |label, count| Tensor::new(memory, Purpose::Staging, label, count, DType::U32);
        let own: Vec<u32> = (0..seats as u32).collect();
        let longest = PREFILL_TOKENS.min(seats * context);
        Ok(Self {
            ranks,
            prefill: base.workspace_with(memory, ranks, capacity(longest))?,
            decode: base.workspace_with(memory, ranks, capacity(seats))?,
            source: table("row sources", seats)?,
            own: Tensor::from_u32(memory, Purpose::Staging, "row numbers", &own)?,
            seen: table("seen ids", seats * base.config().vocab.div_ceil(32))?,
            state: table("row state", 4 * seats)?,
            history: table("drawn ids", seats * SYNC_STEPS)?,
            settings: table("sampling settings", seats * SamplingParams::WORDS)?,
        })
    }
}

/// The highest ranks of the models' adapters.
fn ranks(models: &[&Decoder]) -> Ranks {
    models.iter().fold(Ranks::default(), |ranks, model| ranks.and(model.ranks()))
}

/// The log-prob of `id` and those of the `top` most likely tokens; of equal ones the lowest id comes first.
fn logprob(logits: &[f32], id: u32, top: usize) -> TokenLogprob {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    let of = |id: u32| (f64::from(logits[id as usize] - most) - sum.ln()) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = top.min(ids.len());
    if count > 0 {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
        ids.sort_unstable_by(order);
    } else {
        ids.clear();
    }
    TokenLogprob { logprob: of(id), top: ids.into_iter().map(|id| (id, of(id))).collect() }
}
