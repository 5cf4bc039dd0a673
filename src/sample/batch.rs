//! Answers to requests that come and go: decoded together, each with its own settings, adapter and length.
//!
//! A [`Batch`] has a number of seats. Each has room in the cache for the keys and values of one context. A
//! request takes a free seat: the one whose cache begins like its prompt, if there is one, so that only the
//! rest of the prompt is computed. That is how a conversation goes on without being read again. If a
//! beginning is in another request's seat, its keys and values are copied.

use web_time::Instant;

use super::logprob::TokenLogprob;
use super::rows::{Drawn, Row, RowBuffers};
use super::seats::{Job, Running, Seat, Ticket, common, seat_for};
use super::{Answer, SYNC_STEPS};
use crate::data::packing::Packed;
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::sample::Common;
use crate::model::Decoder;
use crate::nn::{KvCache, Pass, Ranks};
use crate::{Error, Result};

/// The most prompt tokens that are computed in one turn.
const PREFILL_TOKENS: usize = 512;
/// The fewest tokens of a known beginning that are worth a copy.
const LEAST_COPIED: usize = 16;
/// The time between two looks at the drawn tokens, in seconds, if that is several tokens: what a reader sees
/// as steady.
const LOOK_SECONDS: f64 = 0.1;
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
    /// The ranks of adapters that the buffers are for.
    ranks: Ranks,
    buffers: RowBuffers,
    /// The logits of a step before they become weights, if log-probs are wanted; allocated at first use.
    kept: Option<Tensor>,
    next_ticket: Ticket,
    /// Mean seconds of a decoding step of late.
    step_seconds: f64,
    /// The vocabulary's size.
    vocab: usize,
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
            ranks: ranks(models),
            buffers: buffers(memory, base, ranks(models), seating)?,
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
        let needed = self.ranks.and(ranks(models));
        if needed != self.ranks {
            self.buffers = buffers(memory, models[0], needed, self.seating)?;
            self.ranks = needed;
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
        let seat = seat_for(&self.seats, &job).expect("a free seat");
        let seat = &mut self.seats[seat];
        let known = seat.common(&job);
        let drawn = Drawn::new(&job.prompt, &job.settings, self.vocab);
        seat.model = job.model;
        seat.cached = job.prompt[..known].to_vec();
        seat.last = ticket;
        seat.job = Some(Running { ticket, job, drawn, reused: known });
        Ok(ticket)
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
        let live = |seat: &Seat| seat.job.as_ref().is_some_and(Running::answers);
        (0..self.seats.len()).filter(move |&i| live(&self.seats[i]))
    }

    /// The model of the job that has waited longest for its prompt's pass.
    fn waiting_model(&self) -> Option<u64> {
        let jobs = self.seats.iter().filter_map(|seat| seat.job.as_ref());
        let waiting = jobs.filter(|running| !running.answers());
        waiting.min_by_key(|running| running.ticket).map(|running| running.job.model)
    }

    /// Computes prompts of a model, the oldest job's first. Jobs whose prompts are complete get their first
    /// token.
    async fn prefill(&mut self, gpu: &Gpu, decoder: &Decoder, key: u64, news: &mut Vec<News>) -> Result<()> {
        let mut waiting: Vec<(Ticket, usize)> = Vec::new();
        for (i, seat) in self.seats.iter().enumerate() {
            let running = seat.job.as_ref().filter(|running| !running.answers() && running.job.model == key);
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
                let other = self.seats[other].job.as_ref();
                other.is_some_and(|other| common(&other.job.prompt, &running.job) >= known + LEAST_COPIED)
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
        let drawing = self.load(gpu, &complete);
        self.buffers.source.write_u32(gpu, &sources);
        let RowBuffers { prefill, source, .. } = &self.buffers;
        decoder.next_logits(&mut rec, pass, prefill, &hidden, source, complete.len())?;
        self.draw(&mut rec, &drawing, &prefill.logits, complete.len(), 0)?;
        self.look(gpu, rec, &complete, 1, news).await
    }

    /// Samples the next tokens of all answers of a model.
    async fn decode(&mut self, gpu: &Gpu, decoder: &Decoder, key: u64, news: &mut Vec<News>) -> Result<()> {
        let rows: Vec<usize> = self.answering().filter(|&i| self.seats[i].model == key).collect();
        let running = || rows.iter().filter_map(|&i| self.seats[i].job.as_ref());
        let left = |running: &Running| running.job.settings.max_new_tokens as usize - running.drawn.ids.len();
        let most = running().map(left).max().unwrap_or(1).min(SYNC_STEPS);
        let started = Instant::now();
        let drawing = self.load(gpu, &rows);
        let steps = match drawing.logprobs {
            true => 1,
            false => ((LOOK_SECONDS / self.step_seconds) as usize).clamp(1, most),
        };
        let mut rec = Recorder::new(gpu);
        let pass = Pass { decoding: true, sparse: true, ..decoder.policy() };
        for column in 0..steps {
            let RowBuffers { decode, own, .. } = &self.buffers;
            let hidden = decoder.hidden(&mut rec, pass, decode, Some(&self.caches))?;
            decoder.next_logits(&mut rec, pass, decode, hidden, own, rows.len())?;
            self.draw(&mut rec, &drawing, &decode.logits, rows.len(), column)?;
        }
        self.look(gpu, rec, &rows, steps, news).await?;
        let seconds = started.elapsed().as_secs_f64() / steps as f64;
        self.step_seconds += 0.3 * (seconds - self.step_seconds);
        Ok(())
    }

    /// Uploads the tables of these seats' rows, in their state before the next token is sampled.
    fn load(&mut self, gpu: &Gpu, seats: &[usize]) -> Drawing {
        let context = self.seating.context;
        let running = || seats.iter().filter_map(|&i| Some((i, self.seats[i].job.as_ref()?)));
        let rows: Vec<Row> = running().map(|(i, running)| running.row(i * context)).collect();
        self.buffers.load(gpu, &rows);
        Drawing {
            common: Common::of(running().map(|(_, running)| &running.job.settings)),
            logprobs: running().any(|(_, running)| running.job.top_logprobs.is_some()),
        }
    }

    /// Records the draw of a token from each row of `logits`. If log-probs are wanted, the logits are copied
    /// before, because the draw overwrites them.
    fn draw(
        &self,
        rec: &mut Recorder,
        drawing: &Drawing,
        logits: &Tensor,
        rows: usize,
        column: usize,
    ) -> Result<()> {
        if let Some(kept) = self.kept.as_ref().filter(|_| drawing.logprobs) {
            logits.slice(0, rows * self.vocab).copy_to(rec, kept);
        }
        self.buffers.draw(rec, &drawing.common, logits, rows, column)
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
        let history = self.buffers.history(gpu, rows.len());
        // All reads are submitted before the first is awaited.
        let logits = rows.iter().enumerate().map(|(r, &i)| {
            let kept = self.kept.as_ref()?;
            let top = self.seats[i].job.as_ref()?.job.top_logprobs?;
            Some((top, kept.slice(r * self.vocab, self.vocab).read_f32(gpu)))
        });
        let logits: Vec<_> = logits.collect();
        let history = history.await?;
        for ((&i, drawn), logits) in rows.iter().zip(history.chunks_exact(SYNC_STEPS)).zip(logits) {
            let seat = &mut self.seats[i];
            let Some(running) = &mut seat.job else { continue };
            let before = running.drawn.ids.len();
            let drawn = running.drawn.extend(&drawn[..columns], self.vocab, &|| "sampling".to_owned());
            let ids = running.drawn.ids[before..].to_vec();
            let mut logprobs = Vec::new();
            if let (Some((top, logits)), Some(&id)) = (logits, ids.first()) {
                logprobs.push(TokenLogprob::of(&logits.await?, id, top));
            }
            // The last token is not fed to the model yet.
            let fed = running.drawn.ids.len().saturating_sub(1);
            seat.cached = [&running.job.prompt, &running.drawn.ids[..fed]].concat();
            let end = match drawn {
                Ok(_) => running.drawn.finished(&running.job.settings).map(Ok),
                Err(error) => {
                    // What made the logits invalid may be in the cache.
                    seat.cached.clear();
                    Some(Err(error))
                }
            };
            let (ticket, cached_tokens) = (running.ticket, running.reused);
            if end.is_some() {
                seat.job = None;
            }
            news.push(News { ticket, ids, logprobs, cached_tokens, end });
        }
        Ok(())
    }
}

/// What the rows that are drawn together need.
struct Drawing {
    common: Common,
    /// Whether one of them wants log-probs.
    logprobs: bool,
}

/// The buffers of a batch whose adapters have up to these ranks.
fn buffers(memory: &Memory, base: &Decoder, ranks: Ranks, seating: Seating) -> Result<RowBuffers> {
    let Seating { seats, context } = seating;
    RowBuffers::new(memory, base, ranks, PREFILL_TOKENS.min(seats * context), seats)
}

/// The highest ranks of the models' adapters.
fn ranks(models: &[&Decoder]) -> Ranks {
    models.iter().fold(Ranks::default(), |ranks, model| ranks.and(model.ranks()))
}
