//! The sampler through the whole model.

mod common;

use aweigh::gpu::{Gpu, Options, Tier};
use aweigh::model::Training;
use aweigh::sample::{Request, SamplingParams, generate};
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
