//! Sampling on the device: many prompts at once, a prompt's keys and values shared by all its samples.
//!
//! The random number for a token depends only on (seed, prompt, sample, step). Results therefore do not
//! depend on which rows share a batch, nor on when finished rows leave it. The host reads the sampled ids
//! only every few steps.

mod batch;
mod logprob;
mod room;
mod rows;
mod seats;
mod wave;

use crate::config::{AnchorConfig, MAX_NUM_SEQS};
use crate::gpu::Gpu;
use crate::model::Decoder;
use crate::nn::Pass;
use crate::{Error, Result};
use room::{Piece, waves};
use wave::{Sequence, Wave};

pub use crate::kernels::sample::{MAX_ENDS, SamplingParams};
pub use batch::{Batch, News, Seating};
pub use logprob::{MAX_TOP_LOGPROBS, TokenLogprob};
pub(crate) use room::{Room, shared_beginning};
pub use seats::{Job, Ticket};

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
    let room = room_of(gpu, decoder, requests, settings);
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
        looked.rows.first().map_or(Ok(()), |row| each(&row.drawn.ids))
    };
    let room = room_of(gpu, decoder, &request, settings);
    draw(room, gpu, decoder, pass, &request, settings, &mut look).await?;
    answer.ok_or_else(|| Error::Internal { doing: "sampling", message: "no answer returned".into() })
}

/// The room that `requests` need.
fn room_of(gpu: &Gpu, decoder: &Decoder, requests: &[Request], settings: &SamplingParams) -> Room {
    let shared = shared_beginning(requests.iter().map(|request| request.prompt));
    let most = settings.max_new_tokens as usize;
    Room::of(gpu, decoder.config(), &lengths(requests), shared, most, MAX_NUM_SEQS)
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
    let beginning = &requests[0].prompt[..room.shared];
    if !requests.iter().all(|request| request.prompt[..request.prompt.len() - 1].starts_with(beginning)) {
        let message = format!("not all prompts begin with the same {} tokens", room.shared);
        return Err(Error::Internal { doing: "sampling", message });
    }
    let mut buffers = Wave::new(gpu, decoder, room)?;
    buffers.begin(gpu, decoder, pass, beginning)?;
    for wave in waves(&lengths(requests), room.shared, room.limits()) {
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
