//! The sampler through the whole model.

mod common;

use aweigh::gpu::{Gpu, Options, Tier};
use aweigh::model::{Adapter, Decoder, Training};
use aweigh::sample::{
    Answer, Batch, Job, News, Request, SamplingParams, Seating, Ticket, TokenLogprob, generate,
};
use common::*;
use pollster::block_on;

fn settings() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_new_tokens: 20,
        seed: 5,
        ends: vec![2],
    }
}

#[test]
fn greedy_answers_follow_the_largest_logit() {
    let decoder = load("tiny_tied", Training::None);
    let greedy = SamplingParams { temperature: 0.0, ..settings() };
    let prompts: [&[u32]; 3] = [&[1, 14, 19, 49, 20], &[1], &[5, 6, 7, 8, 9, 10, 11]];
    let requests: Vec<Request> =
        prompts.iter().map(|p| Request { prompt: p, first_sample: 0, samples: 2, index: 3 }).collect();
    let answers =
        block_on(generate(gpu(), &decoder, decoder.policy(), &requests, &greedy, &mut |_, _| Ok(())));
    for (prompt, answers) in prompts.iter().zip(answers.expect("answers")) {
        assert_eq!(answers[0], answers[1]);
        let mut ids = prompt.to_vec();
        for &id in &answers[0].ids {
            let logits = block_on(decoder.logits(gpu(), decoder.policy(), &ids)).expect("logits");
            let last = &logits[logits.len() - decoder.config().vocab..];
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
            assert_eq!(id as usize, best, "after {ids:?}");
            ids.push(id);
        }
        assert_eq!(answers[0].ended, answers[0].ids.last() == Some(&2));
        assert!(answers[0].ended || answers[0].ids.len() == 20);
    }
}

/// Prompts that begin alike get the same answers together, where their beginning is computed once, as each
/// alone, on both tiers.
#[test]
fn a_shared_beginning_changes_no_answer() {
    for tier in [Tier::Software, Tier::Portable] {
        let options = Options { tier: Some(tier), default_limits: true, ..Options::default() };
        let gpu = block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}"));
        let decoder = load_on(&gpu, "tiny_tied", Training::None);
        let beginning: Vec<u32> = (0..37).map(|i| 3 + i * 11 % 60).collect();
        let prompts: Vec<Vec<u32>> = (0..6)
            .map(|i: u32| {
                [&beginning[..], &(0..1 + i * 3).map(|j| 3 + (i * 7 + j) % 60).collect::<Vec<_>>()].concat()
            })
            .collect();
        let request =
            |i: usize| Request { prompt: &prompts[i], first_sample: 0, samples: 3, index: i as u32 };
        let settings = settings();
        let answers = |requests: &[Request]| {
            let mut unwatched = |_, _| Ok(());
            let drawn = generate(&gpu, &decoder, decoder.policy(), requests, &settings, &mut unwatched);
            block_on(drawn).expect("answers")
        };
        let together = answers(&(0..6).map(request).collect::<Vec<_>>());
        for (i, together) in together.iter().enumerate() {
            assert_eq!(answers(&[request(i)])[0], *together, "{tier:?}, prompt {i}");
        }
        let distinct: std::collections::HashSet<_> = together.iter().flatten().map(|a| &a.ids).collect();
        assert!(distinct.len() > 12, "the answers differ");
    }
}

/// The golden adapter.
fn adapter(use_it: impl FnOnce(&Adapter)) {
    let config = golden("tiny_tied/adapter/adapter_config.json");
    let weights = golden("tiny_tied/adapter/adapter_model.safetensors");
    let adapter = Adapter::parse(("adapter_config.json", &config), ("adapter_model.safetensors", &weights));
    use_it(&adapter.expect("an adapter"));
}

/// What a batch's jobs have got.
#[derive(Default)]
struct Got {
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    cached: usize,
    answer: Option<Answer>,
}

type All = std::collections::HashMap<Ticket, Got>;

fn take(all: &mut All, news: Vec<News>) {
    for news in news {
        let got = all.entry(news.ticket).or_default();
        got.ids.extend(news.ids);
        got.logprobs.extend(news.logprobs);
        got.cached = news.cached_tokens;
        if let Some(end) = news.end {
            got.answer = Some(end.expect("an answer"));
        }
    }
}

/// Turns until all jobs are answered.
fn finish(gpu: &Gpu, batch: &mut Batch, models: &[&Decoder], all: &mut All) {
    while !batch.is_idle() {
        take(all, block_on(batch.turn(gpu, &|key| models[key as usize])).expect("a turn"));
    }
}

/// The answer to a job by the other sampler.
fn alone(gpu: &Gpu, model: &Decoder, job: &Job) -> Answer {
    let request = [Request { prompt: &job.prompt, first_sample: job.sample, samples: 1, index: 0 }];
    let mut unwatched = |_, _| Ok(());
    let drawn = generate(gpu, model, model.policy(), &request, &job.settings, &mut unwatched);
    block_on(drawn).expect("answers").remove(0).remove(0)
}

/// Jobs that come while others are answered, with settings, lengths and models of their own, on fewer seats
/// than jobs, get the answers that each gets alone. So does a conversation that goes on in its cache, and
/// jobs whose beginning is copied from another's seat, also when that other was cancelled.
#[test]
fn a_batch_answers_as_if_each_job_were_alone() {
    for tier in [Tier::Software, Tier::Portable] {
        let options = Options { tier: Some(tier), default_limits: true, ..Options::default() };
        let gpu = block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}"));
        let base = load_on(&gpu, "tiny_tied", Training::None);
        adapter(|adapter| {
            let adapted = base.with_adapter(&gpu, adapter).expect("an adapter");
            let models = [&base, &adapted];
            let mut batch = Batch::new(&gpu, &models, Seating { seats: 3, context: 120 }).expect("a batch");
            let beginning: Vec<u32> = (0..33).map(|i| 3 + i * 11 % 60).collect();
            let job = |i: u32| {
                let own = (0..1 + i * 3).map(|j| 3 + (i * 7 + j) % 60);
                let prompt: Vec<u32> = match i % 3 {
                    0 => own.collect(),
                    _ => beginning.iter().copied().chain(own).collect(),
                };
                let settings = SamplingParams {
                    temperature: [1.0, 0.0, 0.7][i as usize % 3],
                    top_k: [0, 5][i as usize % 2],
                    top_p: [1.0, 0.9][i as usize / 2 % 2],
                    repetition_penalty: if i == 4 { 1.5 } else { 1.0 },
                    max_new_tokens: 1 + 5 * (i % 5),
                    seed: i,
                    ..settings()
                };
                let top_logprobs = (i == 5).then_some(3);
                Job { prompt, settings, sample: i % 2, model: u64::from(i % 4 == 2), top_logprobs }
            };
            let jobs: Vec<Job> = (0..9).map(job).collect();
            let (mut all, mut tickets) = (All::new(), Vec::new());
            for job in &jobs {
                while !batch.has_room() {
                    take(&mut all, block_on(batch.turn(&gpu, &|key| models[key as usize])).expect("a turn"));
                }
                tickets.push(batch.admit(&gpu, job.clone()).expect("a seat"));
            }
            finish(&gpu, &mut batch, &models, &mut all);
            for (i, (job, ticket)) in jobs.iter().zip(&tickets).enumerate() {
                let got = &all[ticket];
                let expected = alone(&gpu, models[job.model as usize], job);
                assert_eq!(got.answer.as_ref(), Some(&expected), "{tier:?}, job {i}");
                assert_eq!(got.ids, expected.ids, "{tier:?}, job {i}");
            }
            assert!(tickets.iter().any(|ticket| all[ticket].cached >= 33), "no beginning was shared");

            // The conversation of a job goes on: all but its last token is known.
            let said = &all[&tickets[8]];
            let mut next = jobs[8].clone();
            next.prompt.extend(&said.ids);
            next.prompt.extend([7, 9, 11]);
            let known = jobs[8].prompt.len() + said.ids.len() - 1;
            let ticket = batch.admit(&gpu, next.clone()).expect("a seat");
            // One that is cancelled leaves its seat.
            let long = SamplingParams { max_new_tokens: 60, ends: Vec::new(), ..jobs[1].settings.clone() };
            let long = Job { settings: long, ..jobs[1].clone() };
            let gone = batch.admit(&gpu, long).expect("a seat");
            take(&mut all, block_on(batch.turn(&gpu, &|key| models[key as usize])).expect("a turn"));
            batch.cancel(gone);
            finish(&gpu, &mut batch, &models, &mut all);
            assert_eq!(all[&ticket].cached, known, "{tier:?}");
            let expected = alone(&gpu, models[next.model as usize], &next);
            assert_eq!(all[&ticket].answer.as_ref(), Some(&expected), "{tier:?}");
            let again = batch.admit(&gpu, jobs[1].clone()).expect("a seat");
            finish(&gpu, &mut batch, &models, &mut all);
            assert_eq!(all[&again].answer.as_ref(), Some(&alone(&gpu, &base, &jobs[1])), "{tier:?}");
            assert!(all.get(&gone).is_none_or(|got| got.answer.is_none()));
        });
    }
}

/// Log-probs are those of the model's own logits, at temperature 1, whatever the settings.
#[test]
fn a_batch_tells_log_probs() {
    let decoder = load("tiny_tied", Training::None);
    let mut batch = Batch::new(gpu(), &[&decoder], Seating { seats: 2, context: 64 }).expect("a batch");
    let prompt = vec![1, 14, 19, 49, 20];
    let settings = SamplingParams { temperature: 0.5, top_k: 9, ..settings() };
    let job = Job { prompt: prompt.clone(), settings, sample: 0, model: 0, top_logprobs: Some(4) };
    // Beside it is one that wants none.
    let other = Job { top_logprobs: None, sample: 1, ..job.clone() };
    let (ticket, other) =
        (batch.admit(gpu(), job).expect("a seat"), batch.admit(gpu(), other).expect("a seat"));
    let mut all = All::new();
    finish(gpu(), &mut batch, &[&decoder], &mut all);
    assert!(all[&other].logprobs.is_empty());
    let got = &all[&ticket];
    assert_eq!(got.logprobs.len(), got.ids.len());
    let mut ids = prompt;
    for (&id, told) in got.ids.iter().zip(&got.logprobs) {
        let logits = block_on(decoder.logits(gpu(), decoder.policy(), &ids)).expect("logits");
        let last = &logits[logits.len() - decoder.config().vocab..];
        let most = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = last.iter().map(|&l| f64::from(l - most).exp()).sum();
        let logprob = |id: u32| f64::from(last[id as usize] - most) - sum.ln();
        let mut order: Vec<u32> = (0..last.len() as u32).collect();
        order.sort_by(|&a, &b| last[b as usize].total_cmp(&last[a as usize]));
        assert!((f64::from(told.logprob) - logprob(id)).abs() < 1e-4, "{} {}", told.logprob, logprob(id));
        assert_eq!(told.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order[..4]);
        assert!(told.top.iter().all(|&(id, own)| (f64::from(own) - logprob(id)).abs() < 1e-4));
        ids.push(id);
    }
}

/// Prompts that together are longer than what one pass computes are computed in parts.
#[test]
fn a_batch_computes_long_prompts_in_parts() {
    let decoder = load("tiny_tied", Training::None);
    let context = decoder.context();
    let seats = 512 / (context - 20) + 3;
    let mut batch = Batch::new(gpu(), &[&decoder], Seating { seats, context }).expect("a batch");
    let job = |first: u32| {
        let prompt = (0..context as u32 - 20).map(|i| 3 + (first + i * i) % 59).collect();
        Job { prompt, settings: settings(), sample: 0, model: 0, top_logprobs: None }
    };
    let jobs: Vec<Job> = (0..seats as u32).map(job).collect();
    let tickets: Vec<Ticket> =
        jobs.iter().map(|job| batch.admit(gpu(), job.clone()).expect("a seat")).collect();
    let mut all = All::new();
    finish(gpu(), &mut batch, &[&decoder], &mut all);
    for (job, ticket) in jobs.iter().zip(tickets) {
        assert_eq!(all[&ticket].answer.as_ref(), Some(&alone(gpu(), &decoder, job)));
    }
    let long = Job { settings: SamplingParams { max_new_tokens: 21, ..settings() }, ..jobs[0].clone() };
    let error = batch.admit(gpu(), long).expect_err("no room").to_string();
    assert!(error.contains(&format!("1 to {context} tokens")), "{error}");
    let odd = Job { prompt: vec![1, 60_000], ..jobs[1].clone() };
    assert!(batch.admit(gpu(), odd).expect_err("an odd id").to_string().contains("vocab_size"));
}
