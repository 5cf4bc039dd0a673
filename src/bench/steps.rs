//! Whole steps: a training step, a D²O group with its prompt shared or not, and sampling.

use serde::Serialize;
use web_time::Instant;

use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{Gpu, Purpose, Recorder};
use crate::kernels::sample::SamplingParams;
use crate::loss::{Formula, Loss};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{Arenas, Recompute};
use crate::optim::{AdamW, Optimizer};
use crate::sample::{Request, generate};
use crate::train::{MicroBatch, Trainer};

/// `count` token ids, spread over the vocabulary: 7919·i + 13 modulo its size. Other programs are measured
/// with the same ids.
pub(super) fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((7919 * i + 13) % vocab) as u32).collect()
}

/// Times of forward, loss and backward.
#[derive(Debug, Clone, Serialize)]
pub struct StepTimes {
    /// Sequences in the batch.
    pub batch: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Parameters with gradients.
    pub trainable_parameters: usize,
    /// Mean negative log-prob per token, without the first token of each sequence, in nats.
    pub loss: f32,
    /// Kernels that a run consists of.
    pub dispatches: u64,
    /// Seconds of each run, without the optimizer step.
    pub seconds: Vec<f64>,
    /// The memory held after the first of these runs, and after the last.
    pub held: [Held; 2],
}

/// Memory held at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Held {
    /// Buffers on the device.
    pub device: u64,
    /// The process's memory, if the system reports it. On a software adapter this includes the device's
    /// buffers.
    pub process: Option<u64>,
}

/// Times forward, loss and backward on `batch` sequences of `tokens` tokens. `process` returns the process's
/// memory in bytes.
///
/// # Errors
/// A batch over the model's context, or an error that the device reports.
pub async fn step(
    gpu: &Gpu,
    decoder: Decoder,
    (batch, tokens): (usize, usize),
    runs: usize,
    process: impl Fn() -> Option<u64>,
) -> Result<StepTimes> {
    decoder.check_context("bench: --tokens", tokens)?;
    let ids = ids(tokens, decoder.config().vocab);
    let trainable_parameters = decoder.layout().count();
    let optimizer = Optimizer::new(gpu, decoder.layout(), AdamW::default())?;
    let loss = Loss { formula: Formula::Sft, length_normalize: false, negative_floor: None };
    let mut trainer = Trainer::new(gpu, decoder, optimizer, loss, 0);
    let group = Group { prompt: &ids[..1], responses: vec![&ids[1..]] };
    let micro = MicroBatch {
        groups: vec![group; batch],
        retained: None,
        reference: Vec::new(),
        weights: Vec::new(),
        kl: 0.0,
    };
    let (mut seconds, mut found, mut held) = (Vec::new(), 0.0, [Held::default(); 2]);
    let mut dispatches = 0;
    for run in 0..=runs {
        let before = gpu.dispatches();
        let started = Instant::now();
        found = trainer.accumulate(&micro, batch)?.await?.groups[0].loss;
        gpu.finished().await?;
        dispatches = gpu.dispatches() - before;
        if run > 0 {
            seconds.push(started.elapsed().as_secs_f64());
            held[1] = Held { device: gpu.ledger().total().now, process: process() };
        }
        if run == 1 {
            held[0] = held[1];
        }
    }
    Ok(StepTimes { batch, tokens, trainable_parameters, dispatches, loss: found, seconds, held })
}

/// A D²O group, once with its prompt shared by all answers and once as separate sequences.
#[derive(Debug, Clone, Serialize)]
pub struct GroupTimes {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Answers: the anchors and the negative.
    pub answers: usize,
    /// Tokens of each answer.
    pub answer: usize,
    /// Seconds of each run, prompt shared.
    pub shared: Vec<f64>,
    /// Seconds of each run, with a copy of the prompt for every answer.
    pub separate: Vec<f64>,
    /// The largest difference of a gradient between the two, as a share of the largest gradient.
    pub gradient_difference: f64,
}

/// Times a D²O step's forward and backward pass both ways, alternately.
///
/// # Errors
/// As [`step`].
pub async fn group(
    gpu: &Gpu,
    decoder: &Decoder,
    (prompt, answers, answer): (usize, usize, usize),
    runs: usize,
) -> Result<GroupTimes> {
    decoder.check_context("bench: prompt and answer", prompt + answer)?;
    let all = ids(prompt + answers * answer, decoder.config().vocab);
    let (start, rest) = all.split_at(prompt);
    let responses: Vec<&[u32]> = rest.chunks(answer).collect();
    let shared = Packed::new(&[Group { prompt: start, responses: responses.clone() }]);
    let alone: Vec<Group> =
        responses.iter().map(|&response| Group { prompt: start, responses: vec![response] }).collect();
    let separate = Packed::new(&alone);
    // D²O's coefficients at its start, with α = β = 0.1.
    let of = |i: usize| if i == answers { 0.05 } else { -0.05 / (answers - 1).max(1) as f32 };
    let coefficients: Vec<f32> = (1..=answers).flat_map(|i| std::iter::repeat_n(of(i), answer)).collect();
    let (mut times, mut gradients) = ([Vec::new(), Vec::new()], Vec::new());
    let mut buffers = Vec::new();
    for packed in [&shared, &separate] {
        let ws = decoder.workspace(gpu, Capacity::covering([packed].into_iter(), Some(Recompute::None)))?;
        buffers.push((ws, Arenas::new(gpu, decoder.layout(), Purpose::Gradients, "gradients")?));
    }
    for run in 0..=runs {
        for (i, packed) in [&shared, &separate].into_iter().enumerate() {
            let (ws, arenas) = &mut buffers[i];
            let seconds = pass(gpu, decoder, packed, &coefficients, ws, arenas).await?;
            if run > 0 {
                times[i].push(seconds);
            } else {
                gradients.push(arenas.read(gpu, decoder.layout()).await?.concat());
            }
        }
    }
    let size = gradients[1].iter().fold(0.0f32, |most, g| most.max(g.abs()));
    let pairs = gradients[0].iter().zip(&gradients[1]);
    let difference = pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    let [shared, separate] = times;
    let gradient_difference = f64::from(difference) / f64::from(size.max(f32::MIN_POSITIVE));
    Ok(GroupTimes { prompt, answers, answer, shared, separate, gradient_difference })
}

/// Seconds of one forward and backward pass with given coefficients.
async fn pass(
    gpu: &Gpu,
    decoder: &Decoder,
    packed: &Packed,
    coefficients: &[f32],
    ws: &mut Workspace,
    gradients: &Arenas,
) -> Result<f64> {
    let started = Instant::now();
    let mut rec = Recorder::new(gpu);
    ws.load(&mut rec, packed)?;
    ws.coefficient.write_f32(gpu, coefficients);
    decoder.score(&mut rec, decoder.policy(), ws)?;
    decoder.backward(&mut rec, decoder.policy(), gradients, ws)?;
    rec.submit();
    gpu.finished().await?;
    Ok(started.elapsed().as_secs_f64())
}

/// Sampling many answers to a prompt at once, and one at a time.
#[derive(Debug, Clone, Serialize)]
pub struct SamplingTimes {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Answers sampled together.
    pub answers: usize,
    /// Tokens of each answer.
    pub new_tokens: usize,
    /// Answer tokens per second of each run, all answers at once.
    pub together: Vec<f64>,
    /// Answer tokens per second of each run, one answer at a time.
    pub one_by_one: Vec<f64>,
}

/// Times the sampler both ways, alternately. The time includes the prompt's forward pass.
///
/// # Errors
/// As [`step`].
pub async fn sampling(
    gpu: &Gpu,
    decoder: &Decoder,
    (prompt, answers, new_tokens): (usize, usize, usize),
    runs: usize,
) -> Result<SamplingTimes> {
    let prompt_ids = ids(prompt, decoder.config().vocab);
    let settings = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 0.95,
        repetition_penalty: 1.0,
        max_new_tokens: new_tokens as u32,
        seed: 42,
        // No token ends an answer: all have the same length.
        ends: Vec::new(),
    };
    let rate = async |samples: usize| -> Result<f64> {
        let request = [Request { prompt: &prompt_ids, first_sample: 0, samples, index: 0 }];
        let started = Instant::now();
        let drawn = generate(gpu, decoder, decoder.policy(), &request, &settings, &mut |_, _| Ok(())).await?;
        let tokens: usize = drawn.concat().iter().map(|answer| answer.ids.len()).sum();
        Ok(tokens as f64 / started.elapsed().as_secs_f64())
    };
    let (mut together, mut one_by_one) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let rates = [rate(answers).await?, rate(1).await?];
        if run > 0 {
            together.push(rates[0]);
            one_by_one.push(rates[1]);
        }
    }
    Ok(SamplingTimes { prompt, answers, new_tokens, together, one_by_one })
}
