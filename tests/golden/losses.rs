//! Every method against PyTorch: losses, every gradient, ten optimizer steps; and against TRL's own figures.

use std::collections::BTreeSet;

use aweigh::Result;
use aweigh::config::{Beta, RunConfig};
use aweigh::data::packing::Group;
use aweigh::data::{Example, Prompt};
use aweigh::loss::{Formula, Loss, Retain};
use aweigh::model::{Adapter, Decoder, Training};
use aweigh::nn::Pass;
use aweigh::optim::{AdamW, Optimizer};
use aweigh::reference::compare::compare;
use aweigh::score::{Scored, score};
use aweigh::train::{Metrics, MicroBatch, Observer, RetainedGroups, Setup, Trainer, align};
use pollster::block_on;

use crate::common::*;
use crate::{ABS, EPS, compare_gradients};

/// A group of the golden batch: its prompt and responses.
type Owned = (Vec<u32>, Vec<Vec<u32>>);

/// The golden batch's groups for `method`; for KTO also each answer's prompt with the answer before it.
fn batch(method: &str) -> (Vec<Owned>, Vec<Owned>) {
    let info = golden_json("losses.json");
    let (mut groups, mut answers) = (Vec::new(), Vec::new());
    for group in info["batch"].as_array().expect("groups") {
        let (prompt, chosen, negative) =
            (ids(&group["prompt"]), ids(&group["chosen"]), ids(&group["negative"]));
        answers.extend([chosen.clone(), negative.clone()].map(|answer| (prompt.clone(), answer)));
        match method {
            "sft" => groups.push((prompt, vec![chosen])),
            "ga" | "ul" | "npo" | "simnpo" => groups.push((prompt, vec![negative])),
            "kto" => groups
                .extend([(prompt.clone(), vec![chosen, Vec::new()]), (prompt, vec![Vec::new(), negative])]),
            name if name.starts_with("d2o") => {
                let anchors = group["anchors"].as_array().expect("anchors").iter().map(ids);
                groups.push((prompt, anchors.chain([negative]).collect()));
            }
            _ => groups.push((prompt, vec![chosen, negative])),
        }
    }
    let before = answers.iter().cycle().skip(answers.len() - 1);
    let others =
        answers.iter().zip(before).map(|((prompt, _), (_, other))| (prompt.clone(), vec![other.clone()]));
    (groups, if method == "kto" { others.collect() } else { Vec::new() })
}

/// The formula of a method of losses.json, with its constants.
fn formula_of(name: &str) -> Formula {
    let info = golden_json("losses.json");
    let constant = |key: &str| {
        let value = info["methods"][name][key].as_f64();
        value.unwrap_or_else(|| panic!("losses.json: no {key} of {name}"))
    };
    let beta = || constant("beta");
    match name {
        "sft" => Formula::Sft,
        "ga" => Formula::Ga,
        "ul" => Formula::Ul,
        "dpo" => Formula::Dpo { beta: beta(), label_smoothing: 0.0 },
        "cdpo" => Formula::Dpo { beta: beta(), label_smoothing: constant("label_smoothing") },
        "ipo" => Formula::Ipo { beta: beta() },
        "hinge" => Formula::Hinge { beta: beta() },
        "slic" => Formula::Slic { delta: constant("delta"), sft_weight: constant("sft_weight") },
        "simpo" => Formula::Simpo { beta: beta(), gamma: constant("gamma") },
        "orpo" => Formula::Orpo { beta: beta() },
        "kto" => Formula::Kto {
            beta: beta(),
            desirable_weight: constant("desirable_weight"),
            undesirable_weight: constant("undesirable_weight"),
        },
        "npo" => Formula::Npo { beta: beta() },
        "simnpo" => Formula::Simnpo { beta: beta(), gamma: constant("gamma") },
        name if name.starts_with("d2o") => Formula::D2o { alpha: constant("alpha"), beta: beta() },
        other => panic!("no method {other}"),
    }
}

fn decoder_of(adapter: bool) -> Decoder {
    if !adapter {
        return load("tiny_tied", Training::Full);
    }
    let config = golden("tiny_tied/adapter/adapter_config.json");
    let weights = golden("tiny_tied/adapter/adapter_model.safetensors");
    let adapter = Adapter::parse(("adapter_config.json", &config), ("adapter_model.safetensors", &weights));
    load("tiny_tied", Training::Adapter(&adapter.expect("an adapter")))
}

/// The summed log-probs of all responses, each token's times its weight.
fn sums(decoder: &Decoder, pass: Pass, groups: &[Group], weight: Weight) -> Vec<Vec<f32>> {
    let scored = block_on(score(gpu(), decoder, pass, groups, 64, &mut |_, _| Ok(()))).expect("scores");
    let of_group = |group: &Vec<Scored>| {
        let sum = |(i, response): (usize, &Scored)| {
            let tokens = response.token_logps.iter().enumerate();
            tokens.map(|(t, logp)| weight(i, i + 1 == group.len(), t) * logp).sum()
        };
        group.iter().enumerate().map(sum).collect()
    };
    scored.iter().map(of_group).collect()
}

/// The weight of token `t` of a group's response, which may be its last.
type Weight = fn(response: usize, last: bool, t: usize) -> f32;

fn whole(_: usize, _: bool, _: usize) -> f32 {
    1.0
}

/// The weights of `d2o_marked`.
fn marked(response: usize, last: bool, t: usize) -> f32 {
    if last { [1.0, 0.0, 0.5][t % 3] } else { [1.5, 1.0, 0.5][response] }
}

/// Ten steps of `name` ("d2o_lora"), in micro-batches of `micro` groups, against PyTorch's losses, norms and
/// first gradients.
fn ten_steps(name: &str, micro: usize) {
    let (method, kind) = name.rsplit_once('_').expect("a run's name");
    let info = golden_json("losses.json");
    let run = &info["runs"][name];
    let settings = AdamW {
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        ..AdamW::default()
    };
    let (owned, others) = batch(method);
    let groups: Vec<Group> = owned.iter().map(|(prompt, responses)| group(prompt, responses)).collect();
    let others: Vec<Group> = others.iter().map(|(prompt, responses)| group(prompt, responses)).collect();
    let decoder = decoder_of(kind == "lora");
    let optimizer = Optimizer::new(gpu(), decoder.layout(), settings).expect("optimizer");
    // The reference is the starting model: for LoRA the base model, for full fine-tuning the weights before
    // the first step.
    let weight_of: Weight = if method == "d2o_marked" { marked } else { whole };
    let reference = sums(&decoder, decoder.base(), &groups, weight_of);
    let of_others = sums(&decoder, decoder.base(), &others, whole);
    let weights = |group: &Group| -> Vec<f32> {
        let lengths = group.responses.iter().map(|response| response.len()).enumerate();
        let last = group.responses.len() - 1;
        lengths.flat_map(|(i, length)| (0..length).map(move |t| weight_of(i, i == last, t))).collect()
    };
    let constants = &info["methods"][method];
    let negative_floor = constants["negative_floor"].as_f64();
    let loss = Loss { formula: formula_of(method), length_normalize: false, negative_floor };
    // The retain term: each prompt with its first anchor.
    let form: Option<Retain> = serde_json::from_value(constants["retain"].clone()).expect("a form");
    let weight = constants["retain_weight"].as_f64().unwrap_or_default();
    let retained: Vec<Group> = groups
        .iter()
        .filter(|_| form.is_some())
        .map(|group| Group { prompt: group.prompt, responses: vec![group.responses[0]] })
        .collect();
    let start = block_on(score(gpu(), &decoder, decoder.policy(), &retained, 64, &mut |_, _| Ok(())));
    let start: Vec<Vec<f32>> =
        start.expect("scores").into_iter().flatten().map(|answer| answer.token_logps).collect();
    let mut trainer = Trainer::new(gpu(), decoder, optimizer, loss, 0);
    let (mut losses, mut norms, mut margins, mut kls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in 0..=10 {
        let (mut loss, mut margin) = (0.0, 0.0);
        let now = block_on(trainer.score(&others)).expect("scores");
        let ratios = now.iter().zip(&of_others).map(|(now, then)| f64::from(now[0].logp - then[0]));
        let kl = (ratios.sum::<f64>() / others.len().max(1) as f64).max(0.0);
        for (i, (groups, reference)) in groups.chunks(micro).zip(reference.chunks(micro)).enumerate() {
            let at = |i: usize| i.min(retained.len());
            let range = || at(i * micro)..at(i * micro + groups.len());
            let of_retain = form.map(|form| RetainedGroups {
                groups: retained[range()].to_vec(),
                start: start[range()].concat(),
                form,
                scale: weight / retained.len() as f64,
            });
            let batch = MicroBatch {
                weights: if method == "d2o_marked" {
                    groups.iter().flat_map(weights).collect()
                } else {
                    Vec::new()
                },
                groups: groups.to_vec(),
                retained: of_retain,
                reference: reference.concat(),
                kl,
            };
            let outcome = block_on(trainer.accumulate(&batch, owned.len()).expect("a micro-batch"));
            let outcome = outcome.expect("its outcome");
            let outcomes = || outcome.groups.iter();
            loss += outcomes().map(|o| f64::from(o.loss)).sum::<f64>() / owned.len() as f64;
            margin += outcomes().map(|o| f64::from(o.margin())).sum::<f64>() / owned.len() as f64;
            for (now, start) in outcome.retained.iter().zip(&start[range()]) {
                let tokens = now.token_logps.iter().zip(start);
                let of_tokens = tokens.map(|(now, start)| {
                    form.map_or(0.0, |form| form.loss(f64::from(*now), f64::from(*start)))
                });
                let mean = of_tokens.sum::<f64>() / start.len() as f64;
                loss += weight * mean / retained.len() as f64;
            }
        }
        losses.push(loss as f32);
        margins.push(margin as f32);
        kls.push(kl as f32);
        if step == 0 {
            let file = format!("losses/{name}.safetensors");
            compare_gradients(&trainer.decoder, trainer.optimizer.gradients(), &file, "", ABS, EPS);
        }
        if step < 10 {
            norms.push(block_on(trainer.step(1e-3).expect("a step")).expect("its norm"));
        }
    }
    let after = run["loss_after"].as_f64().expect("a number");
    let expected: Vec<f64> = numbers(&run["losses"]).into_iter().chain([after]).collect();
    compare(&losses, &expected, 1e-5, 1e-4).unwrap_or_else(|m| panic!("{name}: losses: {m}"));
    // Adam divides by the root of v: where a gradient is near zero, rounding errors decide how an element
    // moves. The norm shows this from about the third step on; with the KL term, which is 0 at first, from
    // the second.
    let expected = numbers(&run["grad_norms"]);
    let exact = if form == Some(Retain::Kl) { 1 } else { 2 };
    let of_first = compare(&norms[..exact], &expected[..exact], 0.0, 1e-5);
    of_first.unwrap_or_else(|m| panic!("{name}: first norms: {m}"));
    compare(&norms, &expected, 0.0, 1e-3).unwrap_or_else(|m| panic!("{name}: norms: {m}"));
    for (key, found) in [("z", &margins), ("kl", &kls)] {
        if run[key].is_array() {
            let expected = numbers(&run[key]);
            compare(&found[..10], &expected, 1e-4, 1e-4).unwrap_or_else(|m| panic!("{name}: {key}: {m}"));
        }
    }
}

/// One test for each method of losses.json, with full fine-tuning and with LoRA.
macro_rules! methods {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            ten_steps(concat!(stringify!($name), "_full"), 8);
            ten_steps(concat!(stringify!($name), "_lora"), 8);
        })*

        #[test]
        fn every_method_of_the_fixture_is_tested() {
            let info = golden_json("losses.json");
            let methods = info["methods"].as_object().expect("methods");
            let names: BTreeSet<&str> = methods.keys().map(String::as_str).collect();
            assert_eq!(names, BTreeSet::from([$(stringify!($name)),*]));
        }

        #[test]
        fn accumulation_equals_the_large_batch() {
            for name in [$(stringify!($name)),*] {
                ten_steps(&format!("{name}_lora"), 1);
            }
            ten_steps("sft_full", 3);
            ten_steps("kto_full", 3);
        }
    };
}

methods! {
    sft ga ul dpo cdpo ipo hinge slic simpo orpo kto npo simnpo d2o d2o_marked d2o_floor d2o_sft d2o_kl
}

/// Keeps the first step's figures.
#[derive(Default)]
struct First(Option<Metrics>);

impl Observer for First {
    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.0.get_or_insert_with(|| metrics.clone());
        Ok(())
    }
}

/// What a run logs at its first step. The policy has the golden adapter, the reference has none.
fn first_metrics(name: &str) -> Metrics {
    let info = golden_json("losses.json");
    let constant = |key: &str| info["methods"][name][key].as_f64();
    let (groups, others) = batch(name);
    let answer = |responses: &[Vec<u32>], i: usize| responses.get(i).filter(|ids| !ids.is_empty()).cloned();
    let train: Vec<Example> = (0..)
        .zip(&groups)
        .map(|(row, (prompt, responses))| Example {
            chosen_ids: answer(responses, 0),
            negative_ids: answer(responses, 1),
            kl_ids: others.get(row).map(|(_, other)| other[0].clone()),
            ..Example::asking(row + 1, row, Prompt::Text(String::new()), prompt.clone())
        })
        .collect();
    let mut config = RunConfig::default();
    config.method.method = serde_json::from_value(name.into()).expect("a method");
    config.method.beta = constant("beta").map(Beta::Of);
    config.method.alpha = constant("alpha");
    config.method.gamma = constant("gamma");
    config.method.desirable_weight = constant("desirable_weight").unwrap_or(1.0);
    config.method.undesirable_weight = constant("undesirable_weight").unwrap_or(1.0);
    config.train.shuffle = false;
    config.train.max_steps = Some(1);
    // Two halves of the batch, which must give the same figures as the whole.
    config.train.per_device_train_batch_size = train.len() / 2;
    config.train.gradient_accumulation_steps = 2;
    let setup = Setup {
        decoder: decoder_of(true),
        fresh_adapter: true,
        train,
        eval: Vec::new(),
        retain: Vec::new(),
        anchors: None,
        ordinary: Vec::new(),
        reader: None,
        positive: None,
        negative: None,
        ends: vec![2],
        resume: None,
    };
    let mut first = First::default();
    block_on(align(gpu(), setup, &config, &mut first)).expect("a run");
    first.0.expect("a step")
}

/// TRL's own loss and figures, under the same names.
#[test]
fn what_trl_logs() {
    let info = golden_json("losses.json");
    for (method, found) in info["trl"].as_object().expect("methods") {
        let metrics = first_metrics(method);
        let logged = found["metrics"].as_object().expect("metrics").iter();
        for (name, value) in
            logged.map(|(name, value)| (name.as_str(), value)).chain([("loss", &found["loss"])])
        {
            // For SimPO, TRL logs mean log-probs per token, where Aweigh always logs sums. TRL also logs a
            // loss of weight 0 as 0.
            if method == "simpo" && (name.starts_with("logps/") || name == "nll_loss") {
                continue;
            }
            let here = metrics.get(name).unwrap_or_else(|| panic!("{method}: no {name}"));
            let value = value.as_f64().expect("a number");
            assert!(
                (here - value).abs() < 2e-5 * value.abs().max(1.0),
                "{method} {name}: {here}, TRL {value}"
            );
        }
    }
}
