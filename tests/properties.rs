//! Properties of the engine that need no golden values: changes that must not affect a result do not.

mod common;

use aweigh::data::packing::{Group, Packed};
use aweigh::gpu::{Purpose, Recorder};
use aweigh::loss::formula;
use aweigh::loss::{Formula, Loss};
use aweigh::model::TargetModules;
use aweigh::model::{Adapter, Capacity, Decoder, LoraSpec, Training};
use aweigh::nn::{Arenas, Recompute};
use aweigh::optim::{AdamW, Optimizer};
use aweigh::reference::compare::compare;
use aweigh::sample::{Answer, Request, SamplingParams, generate};
use aweigh::score::score;
use aweigh::train::{MicroBatch, Trainer};
use common::*;
use pollster::block_on;
use proptest::prelude::*;

/// Tolerances for f32 sums in another order: `ABS` of a tensor's largest value, or of 1 where that is more.
///
/// An element of a gradient may be the small rest of large terms. Its rounding error is that of the terms.
const ABS: f64 = 5e-6;
const EPS: f64 = 1e-4;

const D2O: Formula = Formula::D2o { alpha: 0.6, beta: 0.9 };
/// The KL divergence that is given to KTO.
const KL: f64 = 0.4;
const FORMULAS: [Formula; 13] = [
    D2O,
    Formula::Dpo { beta: 0.3, label_smoothing: 0.1 },
    Formula::Ipo { beta: 0.2 },
    Formula::Hinge { beta: 0.1 },
    Formula::Slic { delta: 60.0, sft_weight: 0.5 },
    Formula::Simpo { beta: 2.0, gamma: 1.0 },
    Formula::Orpo { beta: 0.3 },
    Formula::Kto { beta: 0.3, desirable_weight: 1.0, undesirable_weight: 1.5 },
    Formula::Npo { beta: 0.3 },
    Formula::Simnpo { beta: 2.5, gamma: 0.1 },
    Formula::Ga,
    Formula::Ul,
    Formula::Sft,
];
const VOCAB: u32 = 67;

/// Groups as owned ids.
type Owned = Vec<(Vec<u32>, Vec<Vec<u32>>)>;

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn borrow(owned: &Owned) -> Vec<Group<'_>> {
    owned.iter().map(|(prompt, responses)| group(prompt, responses)).collect()
}

/// All weights of the untied fixture, or the golden adapter (whose B is not zero) of the tied one.
fn decoder(lora: bool) -> Decoder {
    if !lora {
        return load("tiny_untied", Training::Full);
    }
    let config = golden("tiny_tied/adapter/adapter_config.json");
    let weights = golden("tiny_tied/adapter/adapter_model.safetensors");
    let adapter = Adapter::parse(("adapter_config.json", &config), ("adapter_model.safetensors", &weights));
    load("tiny_tied", Training::Adapter(&adapter.expect("an adapter")))
}

/// A fresh adapter on all linear layers, with A sampled with `seed`.
fn fresh(seed: u32, lora_dropout: f64) -> Decoder {
    let target_modules = TargetModules::AllLinear;
    let spec = LoraSpec { r: 3, lora_alpha: 6.0, lora_dropout, target_modules, ..LoraSpec::default() };
    load("tiny_tied", Training::Lora(spec, seed))
}

fn trainer(decoder: Decoder, formula: Formula, seed: u32) -> Trainer<'static> {
    let settings = AdamW {
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        ..AdamW::default()
    };
    let optimizer = Optimizer::new(gpu(), decoder.layout(), settings).expect("an optimizer");
    Trainer::new(
        gpu(),
        decoder,
        optimizer,
        Loss { formula, length_normalize: false, negative_floor: None },
        seed,
    )
}

/// Made-up reference log-probs: near those of a uniform distribution, a function of the response alone, and 0
/// for an empty response.
fn reference(response: &[u32]) -> f32 {
    if response.is_empty() {
        return 0.0;
    }
    let noise = response.iter().sum::<u32>() % 16;
    -4.2 * response.len() as f32 + 0.125 * noise as f32 - 1.0
}

fn references(groups: &[Group]) -> Vec<f32> {
    groups.iter().flat_map(|group| &group.responses).map(|response| reference(response)).collect()
}

/// A step's loss by group, the token log-probs of its responses, and all gradients.
struct Step {
    losses: Vec<f32>,
    logps: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
}

/// One step over all `micro_batches`.
fn step(decoder: Decoder, formula: Formula, micro_batches: &[&[Group]]) -> Step {
    let mut trainer = trainer(decoder, formula, 0);
    let count = micro_batches.iter().map(|groups| groups.len()).sum();
    let (mut losses, mut logps) = (Vec::new(), Vec::new());
    for groups in micro_batches {
        let batch = MicroBatch {
            groups: groups.to_vec(),
            retained: None,
            weights: Vec::new(),
            reference: references(groups),
            kl: KL,
        };
        for outcome in
            block_on(trainer.accumulate(&batch, count).expect("a micro-batch")).expect("its outcome").groups
        {
            losses.push(outcome.loss);
            logps.push(outcome.responses.iter().flat_map(|r| r.token_logps.clone()).collect());
        }
    }
    let gradients = block_on(trainer.optimizer.gradients().read(gpu(), trainer.decoder.layout()));
    Step { losses, logps, gradients: gradients.expect("gradients") }
}

fn near(what: &str, found: &[f32], expected: &[f32]) -> Result<(), TestCaseError> {
    let largest = expected.iter().fold(1.0f32, |largest, v| largest.max(v.abs()));
    compare(found, &widen(expected), ABS * f64::from(largest), EPS)
        .map_err(|message| TestCaseError::fail(format!("{what}: {message}")))
}

fn same_gradients(found: &Step, expected: &Step) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.gradients.len(), expected.gradients.len());
    for (i, (found, expected)) in found.gradients.iter().zip(&expected.gradients).enumerate() {
        near(&format!("gradient {i}"), found, expected)?;
    }
    Ok(())
}

/// Log-probs and gradients of `batches`, one pass after another. `coefficients` are dL/dlogp by batch and
/// token.
fn passes(
    decoder: &Decoder,
    batches: &[&[Group]],
    coefficients: &[Vec<f64>],
) -> (Vec<Vec<f64>>, Vec<Vec<f32>>) {
    let arenas =
        Arenas::new(gpu(), decoder.layout(), Purpose::Gradients, "gradients").expect("room for gradients");
    let mut tokens = Vec::new();
    for (batch, coefficient) in batches.iter().zip(coefficients) {
        let packed = Packed::new(batch);
        let capacity = Capacity::covering([&packed].into_iter(), Some(Recompute::None));
        let mut ws = decoder.workspace(gpu(), capacity).expect("a workspace");
        let mut rec = Recorder::new(gpu());
        ws.load(&mut rec, &packed).expect("fits");
        let coefficient: Vec<f32> = coefficient.iter().map(|&c| c as f32).collect();
        ws.coefficient.write_f32(gpu(), &coefficient);
        decoder.score(&mut rec, decoder.policy(), &ws).expect("forward");
        decoder.backward(&mut rec, decoder.policy(), &arenas, &ws).expect("backward");
        rec.submit();
        let logps = block_on(ws.stats.slice(0, coefficient.len()).read_f32(gpu())).expect("log-probs");
        tokens.push(widen(&logps));
    }
    (tokens, block_on(arenas.read(gpu(), decoder.layout())).expect("gradients"))
}

fn alone<'a>(group: &Group<'a>) -> Vec<Group<'a>> {
    group.responses.iter().map(|response| Group { prompt: group.prompt, responses: vec![response] }).collect()
}

fn ids(most: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB, 1..most)
}

/// Groups of one to four anchors and a negative.
fn groups() -> impl Strategy<Value = Owned> {
    prop::collection::vec((ids(10), prop::collection::vec(ids(9), 2..5)), 1..4)
}

/// Groups in one order, and the same groups and anchors in another order.
fn reordered() -> impl Strategy<Value = (Owned, Owned)> {
    let anchors = prop::collection::vec(ids(9), 1..5);
    let one = (ids(10), anchors, ids(9));
    prop::collection::vec(one, 2..4).prop_flat_map(|first| {
        let plain = |(prompt, anchors, negative): &(Vec<u32>, Vec<Vec<u32>>, Vec<u32>)| {
            (prompt.clone(), [anchors.clone(), vec![negative.clone()]].concat())
        };
        let mut other = first.clone();
        other.iter_mut().for_each(|(_, anchors, _)| anchors.reverse());
        let second: Owned = other.iter().map(plain).collect();
        (Just(first.iter().map(plain).collect::<Owned>()), Just(second).prop_shuffle())
    })
}

/// Few cases: no case compiles anything, but each runs the whole model.
fn few() -> ProptestConfig {
    ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn a_shared_prompt_equals_separate_sequences(owned in groups(), lora in any::<bool>()) {
        let groups = borrow(&owned);
        let packed = step(decoder(lora), D2O, &[&groups]);
        let model = decoder(lora);
        // The loss couples a group's sequences: its coefficients come from the f64 reference.
        let sequences: Vec<Group> = groups.iter().flat_map(alone).collect();
        let none: Vec<Vec<f64>> = sequences.iter().map(|s| vec![0.0; s.rows()]).collect();
        // Sequences that share nothing: each one has its own copy of the prompt.
        let separate: Vec<&[Group]> = sequences.chunks(1).collect();
        let (tokens, _) = passes(&model, &separate, &none);
        let mut first = 0;
        let outcomes: Vec<formula::Outcome> = groups.iter().map(|group| {
            let own = first..first + group.responses.len();
            first = own.end;
            let reference: Vec<f64> = group.responses.iter().map(|r| f64::from(reference(r))).collect();
            let policy: Vec<&[f64]> = tokens[own].iter().map(Vec::as_slice).collect();
            formula::forward(D2O, &policy, None, &reference, formula::Terms::default())
        }).collect();
        let losses: Vec<f32> = outcomes.iter().map(|outcome| outcome.loss as f32).collect();
        near("losses", &packed.losses, &losses)?;
        let of_sequence = |o: &formula::Outcome| -> Vec<Vec<f64>> {
            let share = |c: &Vec<f64>| c.iter().map(|c| c / outcomes.len() as f64).collect();
            o.coefficients.iter().map(share).collect()
        };
        let coefficients: Vec<Vec<f64>> = outcomes.iter().flat_map(of_sequence).collect();
        let (_, gradients) = passes(&model, &separate, &coefficients);
        for (i, (found, expected)) in packed.gradients.iter().zip(&gradients).enumerate() {
            near(&format!("gradient {i}"), found, expected)?;
        }
    }

    #[test]
    fn the_order_of_anchors_and_groups_does_not_matter(
        (first, second) in reordered(), lora in any::<bool>()
    ) {
        let (first, second) = (borrow(&first), borrow(&second));
        let (a, b) = (step(decoder(lora), D2O, &[&first]), step(decoder(lora), D2O, &[&second]));
        let sorted = |losses: &[f32]| {
            let mut losses = losses.to_vec();
            losses.sort_by(f32::total_cmp);
            losses
        };
        near("losses", &sorted(&a.losses), &sorted(&b.losses))?;
        same_gradients(&a, &b)?;
    }

    #[test]
    fn a_group_is_the_same_alone_and_among_others(owned in groups(), lora in any::<bool>()) {
        let groups = borrow(&owned);
        let together = step(decoder(lora), D2O, &[&groups]);
        for (i, group) in groups.iter().enumerate() {
            let alone = step(decoder(lora), D2O, &[std::slice::from_ref(group)]);
            near("loss", &alone.losses, &together.losses[i..=i])?;
            near("log-probs", &alone.logps[0], &together.logps[i])?;
        }
        // One by one, as micro-batches of the same step.
        let single: Vec<&[Group]> = groups.chunks(1).collect();
        same_gradients(&step(decoder(lora), D2O, &single), &together)?;
    }
}

#[test]
fn accumulation_equals_the_large_batch() {
    let info = golden_json("losses.json");
    let batch = |formula: Formula| -> Owned {
        let groups = info["batch"].as_array().expect("groups").iter();
        let responses = |(i, group): (usize, &serde_json::Value)| match formula {
            Formula::Sft => vec![common::ids(&group["chosen"])],
            Formula::Ga | Formula::Ul | Formula::Npo { .. } | Formula::Simnpo { .. } => {
                vec![common::ids(&group["negative"])]
            }
            Formula::Kto { .. } if i % 2 == 0 => vec![common::ids(&group["chosen"]), Vec::new()],
            Formula::Kto { .. } => vec![Vec::new(), common::ids(&group["negative"])],
            Formula::D2o { .. } => {
                let anchors = group["anchors"].as_array().expect("anchors").iter().map(common::ids);
                anchors.chain([common::ids(&group["negative"])]).collect()
            }
            _ => vec![common::ids(&group["chosen"]), common::ids(&group["negative"])],
        };
        let groups = groups.enumerate();
        groups.map(|(i, group)| (common::ids(&group["prompt"]), responses((i, group)))).collect()
    };
    for formula in FORMULAS {
        let owned = batch(formula);
        let groups = borrow(&owned);
        for lora in [false, true] {
            let whole = step(decoder(lora), formula, &[&groups]);
            for micro in [1, 3] {
                let parts: Vec<&[Group]> = groups.chunks(micro).collect();
                let found = step(decoder(lora), formula, &parts);
                let check = near("losses", &found.losses, &whole.losses);
                check
                    .and_then(|()| same_gradients(&found, &whole))
                    .unwrap_or_else(|error| panic!("{formula:?} lora={lora} micro={micro}: {error}"));
            }
        }
    }
}

/// With this vocabulary a chunk of logits has 64 rows: three chunks for the whole batch, one for each group.
#[test]
fn the_number_of_chunks_of_logits_does_not_matter() {
    let decoder = made_up(gpu(), 1 << 17, 1, Training::Full);
    let response: Vec<Vec<u32>> =
        (0..3).map(|i| (0..50).map(|j| 40_009 * (50 * i + j) % (1 << 17)).collect()).collect();
    let groups: Vec<Group> =
        response.iter().map(|ids| Group { prompt: &[5, 6], responses: vec![ids] }).collect();
    let coefficients: Vec<f64> = (0..150).map(|i| 0.01 * f64::from(i % 7 - 3)).collect();
    let whole = passes(&decoder, &[&groups], std::slice::from_ref(&coefficients));
    let one_by_one: Vec<&[Group]> = groups.chunks(1).collect();
    let shares: Vec<Vec<f64>> = coefficients.chunks(50).map(<[f64]>::to_vec).collect();
    let parts = passes(&decoder, &one_by_one, &shares);
    for (i, (found, expected)) in whole.1.iter().zip(&parts.1).enumerate() {
        near(&format!("gradient {i}"), found, expected).unwrap_or_else(|error| panic!("{error}"));
        assert!(expected.iter().any(|g| g.abs() > 1e-3), "gradient {i} is nearly zero");
    }
}

#[test]
fn a_fresh_adapter_changes_no_bit() {
    let tokens: Vec<u32> = (0..40).map(|i| (7 * i + 3) % VOCAB).collect();
    let bits = |decoder: &Decoder, adapter: bool| {
        let pass = if adapter { decoder.policy() } else { decoder.base() };
        let logits = block_on(decoder.logits(gpu(), pass, &tokens)).expect("logits");
        logits.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
    };
    let plain = bits(&load("tiny_tied", Training::None), true);
    let adapted = fresh(1, 0.0);
    assert!(bits(&adapted, true) == plain && bits(&adapted, false) == plain);
    // The comparison can fail: the golden adapter, whose B is not zero, does change the logits.
    let golden = decoder(true);
    assert!(bits(&golden, true) != plain && bits(&golden, false) == plain);
}

/// Ten steps with dropout; the adapter's bytes.
fn ten_steps(seed: u32) -> Vec<u8> {
    let owned: Owned = vec![
        (vec![1, 14, 19], vec![vec![5, 6, 7, 2], vec![8, 2], vec![30, 31, 2]]),
        (vec![1, 40], vec![vec![9, 9, 2], vec![50, 51, 52, 53], vec![60, 2]]),
    ];
    let groups = borrow(&owned);
    let mut trainer = trainer(fresh(seed, 0.1), D2O, seed);
    for _ in 0..10 {
        for group in groups.chunks(1) {
            let batch = MicroBatch {
                groups: group.to_vec(),
                retained: None,
                weights: Vec::new(),
                reference: references(group),
                kl: 0.0,
            };
            block_on(trainer.accumulate(&batch, groups.len()).expect("a micro-batch")).expect("its outcomes");
        }
        block_on(trainer.step(1e-2).expect("a step")).expect("its norm");
    }
    block_on(trainer.decoder.trained_safetensors(gpu())).expect("an adapter")
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let first = ten_steps(3);
    assert!(first == ten_steps(3), "the same seed trains two adapters");
    assert!(first != ten_steps(4), "the seed changes nothing");
}

fn settings(max_new_tokens: u32, seed: u32) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_new_tokens,
        seed,
        ends: vec![2],
    }
}

fn sample(decoder: &Decoder, requests: &[Request], settings: &SamplingParams) -> Vec<Vec<Answer>> {
    let quiet = &mut |_, _| Ok(());
    block_on(generate(gpu(), decoder, decoder.policy(), requests, settings, quiet)).expect("answers")
}

#[test]
fn answers_do_not_depend_on_their_batch() {
    let decoder = load("tiny_untied", Training::None);
    let prompts: [&[u32]; 4] = [&[1, 14, 19, 49, 20], &[1], &[5, 6, 7, 8, 9, 10, 11, 12, 13], &[1, 14]];
    let penalised = SamplingParams { repetition_penalty: 1.3, top_p: 0.9, ..settings(20, 5) };
    for settings in [settings(20, 5), penalised] {
        let request = |(i, &prompt): (usize, &&'static [u32])| Request {
            prompt,
            first_sample: 2,
            samples: 3 + 2 * i,
            index: 10 + i as u32,
        };
        let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
        let together = sample(&decoder, &requests, &settings);
        assert!(together.iter().flatten().any(|a| a.ended) && together.iter().flatten().any(|a| !a.ended));
        for (request, expected) in requests.iter().zip(&together) {
            assert_eq!(&sample(&decoder, std::slice::from_ref(request), &settings)[0], expected);
            let pieces: Vec<Request> = (0..request.samples as u32)
                .map(|i| Request { first_sample: request.first_sample + i, samples: 1, ..request.clone() })
                .collect();
            let pieces: Vec<Answer> = sample(&decoder, &pieces, &settings).concat();
            assert_eq!(&pieces, expected);
        }
        assert_eq!(sample(&decoder, &requests, &settings), together);
        let other = SamplingParams { seed: 6, ..settings };
        assert_ne!(sample(&decoder, &requests, &other), together);
    }
}

#[test]
fn more_answers_than_fit_at_once_are_the_same_answers() {
    let decoder = load("tiny_untied", Training::None);
    let request = |first_sample, samples| Request { prompt: &[1, 14, 19], first_sample, samples, index: 0 };
    let all = sample(&decoder, &[request(0, 230)], &settings(6, 1)).concat();
    assert_eq!(all.len(), 230);
    let tail = sample(&decoder, &[request(185, 45)], &settings(6, 1)).concat();
    assert_eq!(all[185..], tail);
}

/// The model's own distribution after `ids`.
fn distribution(decoder: &Decoder, ids: &[u32]) -> Vec<f64> {
    let logits = block_on(decoder.logits(gpu(), decoder.policy(), ids)).expect("logits");
    let last = widen(&logits[logits.len() - VOCAB as usize..]);
    let most = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = last.iter().map(|l| (l - most).exp()).sum();
    last.iter().map(|l| (l - most).exp() / total).collect()
}

/// Fails if a token's share is more than five standard deviations from its probability.
fn follows(drawn: &[u32], probabilities: &[f64]) {
    let n = drawn.len() as f64;
    for (id, p) in probabilities.iter().enumerate() {
        let count = drawn.iter().filter(|&&d| d as usize == id).count() as f64;
        let bound = 5.0 * (n * p * (1.0 - p)).sqrt() + 1.0;
        assert!((count - n * p).abs() <= bound, "token {id}: {count} of {n}, expected {:.1}", n * p);
    }
}

#[test]
fn answers_follow_the_model_s_distribution() {
    let decoder = load("tiny_untied", Training::None);
    let prompt = [1, 14, 19];
    let requests = [Request { prompt: &prompt, first_sample: 0, samples: 4000, index: 0 }];
    let answers = sample(&decoder, &requests, &settings(2, 9)).concat();
    let first = distribution(&decoder, &prompt);
    follows(&answers.iter().map(|a| a.ids[0]).collect::<Vec<u32>>(), &first);
    // And after the most likely first token, through the KV cache.
    let usual =
        (0..VOCAB).filter(|&id| id != 2).max_by(|&a, &b| first[a as usize].total_cmp(&first[b as usize]));
    let usual = usual.expect("a vocabulary");
    let after: Vec<u32> = answers.iter().filter(|a| a.ids[0] == usual).map(|a| a.ids[1]).collect();
    assert!(after.len() > 50, "{} answers begin with {usual}", after.len());
    follows(&after, &distribution(&decoder, &[1, 14, 19, usual]));
}

#[test]
fn scores_do_not_depend_on_the_budget() {
    let owned: Owned = (1..8).map(|n| (vec![1; n], vec![vec![3; 9 - n], vec![4, 5], vec![6; n]])).collect();
    let (groups, decoder) = (borrow(&owned), decoder(true));
    let scores = |budget| {
        let quiet = &mut |_, _| Ok(());
        let all = block_on(score(gpu(), &decoder, decoder.policy(), &groups, budget, quiet)).expect("scores");
        all.concat().iter().flat_map(|r| r.token_logps.clone()).collect::<Vec<f32>>()
    };
    let whole = scores(usize::MAX);
    for budget in [1, 20, 45] {
        near("scores", &scores(budget), &whole).unwrap_or_else(|error| panic!("budget {budget}: {error}"));
    }
}
