//! Every method and every variant of D²O: what they log, and that gradient accumulation changes nothing.

use aweigh::config::{Beta, OnlineSampler, ReferenceSource, RunConfig};
use aweigh::data::Example;
use aweigh::loss::{Method, Retain};
use aweigh::train::Setup;

use super::{Watcher, config, examples, run, setup};

pub const METHODS: [Method; 13] = [
    Method::D2o,
    Method::Dpo,
    Method::Ipo,
    Method::Hinge,
    Method::Slic,
    Method::Simpo,
    Method::Orpo,
    Method::Kto,
    Method::Npo,
    Method::Simnpo,
    Method::Ga,
    Method::Ul,
    Method::Sft,
];

/// What each method logs besides loss, entropy and the figures that every step has.
fn logged(method: Method) -> Vec<&'static str> {
    let pair = ["rewards/chosen", "rewards/rejected", "rewards/margins"];
    let logps = ["logps/chosen", "logps/rejected"];
    let accuracy = "rewards/accuracies";
    match method {
        Method::D2o => vec![
            "rewards/anchor",
            "rewards/negative",
            "rewards/margins",
            accuracy,
            "logps/anchor",
            "logps/negative",
            "kl/anchor",
        ],
        Method::Dpo | Method::Ipo | Method::Hinge | Method::Simpo => {
            [&pair[..], &[accuracy], &logps].concat()
        }
        Method::Slic => [&pair[..], &[accuracy], &logps, &["nll_loss"]].concat(),
        Method::Orpo => {
            [&pair[..], &[accuracy], &logps, &["nll_loss", "log_odds_chosen", "log_odds_ratio"]].concat()
        }
        Method::Kto => [&pair[..], &logps, &["kl"]].concat(),
        Method::Npo | Method::Simnpo => vec!["rewards/negative", "rewards/margins", "logps/negative"],
        Method::Ga | Method::Ul => vec!["logps/negative"],
        Method::Sft => vec!["logps/chosen"],
    }
}

/// KTO's examples have one answer each, and another answer for the KL divergence.
pub fn examples_of(method: Method, count: u32) -> Vec<Example> {
    let mut all = examples(count, 0);
    if method == Method::Kto {
        for (i, example) in all.iter_mut().enumerate() {
            example.kl_ids = Some(vec![5 + i as u32, 9, 2]);
            if i % 2 == 0 { example.negative_ids = None } else { example.chosen_ids = None }
        }
    }
    all
}

#[test]
fn every_method_trains_and_accumulates_to_the_same_steps() {
    for method in METHODS {
        let mut config = config();
        config.method.method = method;
        config.train.max_steps = Some(2);
        let setup = || Setup { train: examples_of(method, 4), eval: examples_of(method, 2), ..setup() };
        config.stop.max_perplexity_rise = 1e9;
        config.stop.max_anchor_drop = 1e9;
        config.stop.max_kl = 1e9;
        let (_, whole) = run(setup(), &config);
        config.train.per_device_train_batch_size = 1;
        config.train.gradient_accumulation_steps = 4;
        let (_, parts) = run(setup(), &config);
        let own = ["loss", "entropy", "grad_norm", "learning_rate", "num_tokens", "epoch", "global_step"];
        for (a, b) in whole.steps.iter().zip(&parts.steps) {
            for name in own.into_iter().chain(logged(method)) {
                let [a, b] =
                    [a, b].map(|step| step.get(name).unwrap_or_else(|| panic!("{method:?}: no {name}")));
                assert!((a - b).abs() < 2e-4 * a.abs().max(1.0), "{method:?} {name}: {a} and {b}");
            }
            let others = a.0.iter().filter(|(name, _)| !own.contains(&name.as_str()));
            let others = others.filter(|(name, _)| name != "tokens_per_second").count();
            assert_eq!(others, logged(method).len(), "{method:?} {a:?}");
        }
        assert_eq!((whole.steps.len(), whole.evaluations.len()), (2, 3));
        // The method's loss is lower after two steps on the same examples.
        let losses: Vec<f64> =
            whole.evaluations.iter().map(|e| e.get("eval_loss").expect("a loss")).collect();
        assert!(losses[2] < losses[0], "{method:?}: {losses:?}");
        // A method that uses flagged answers only is also evaluated on anchors that it does not train on.
        let watched = whole.evaluations[2].get("eval_kl/anchor").is_some();
        assert_eq!(watched, method.is_of_negatives(), "{method:?}");
        assert!(whole.evaluations[2].get("eval_perplexity").is_some(), "{method:?}");
    }
}

#[test]
fn the_variants_of_d2o_accumulate_to_the_same_steps() {
    type Change = fn(&mut RunConfig);
    let variants: [(&str, Change); 6] = [
        ("one anchor", |c| c.method.num_samples = 1),
        ("length_normalize", |c| c.method.length_normalize = true),
        ("alpha and beta", |c| (c.method.alpha, c.method.beta) = (Some(0.3), Some(Beta::Of(0.05)))),
        ("ema", |c| c.reference.positive = ReferenceSource::Ema(0.5)),
        ("copy", |c| c.reference.negative = ReferenceSource::CopyEvery(1)),
        ("online", |c| {
            c.anchors.online_start_step = Some(1);
            c.anchors.refresh_every = 1;
            // The model that is sampled from does not change: samples of the policy depend on its last bits.
            c.anchors.online_sampler = OnlineSampler::Reference;
        }),
    ];
    for (name, change) in variants {
        let mut config = config();
        config.train.max_steps = Some(3);
        change(&mut config);
        let (_, whole) = run(setup(), &config);
        config.train.per_device_train_batch_size = 1;
        config.train.gradient_accumulation_steps = 4;
        let (_, parts) = run(setup(), &config);
        assert_eq!((whole.steps.len(), parts.steps.len()), (3, 3));
        for (a, b) in whole.steps.iter().zip(&parts.steps) {
            for (key, a) in a.0.iter().filter(|(key, _)| key != "tokens_per_second") {
                let b = b.get(key).expect("the same figures");
                assert!((a - b).abs() < 2e-4 * a.abs().max(1.0), "{name} {key}: {a} and {b}");
            }
        }
    }
}

/// A run of gradient ascent on four examples with a retain term on five prompts.
fn retaining(form: Retain, change: fn(&mut RunConfig)) -> Watcher {
    let mut config = config();
    config.method.method = Method::Ga;
    (config.retain.form, config.retain.batch_size) = (form, 4);
    change(&mut config);
    let setup = Setup { retain: examples(5, 40), ..setup() };
    run(setup, &config).1
}

#[test]
fn a_retain_term_keeps_answers_as_they_were() {
    // A weight of almost nothing only measures.
    let measured = retaining(Retain::Sft, |c| c.retain.weight = 1e-9);
    let kept = [Retain::Sft, Retain::Kl].map(|form| retaining(form, |c| c.retain.weight = 20.0));
    let last = |watcher: &Watcher| *watcher.all("kl/retain").last().expect("steps");
    assert!(measured.all("kl/retain")[0].abs() < 1e-6 && last(&measured) > 1e-3, "{}", last(&measured));
    assert!(last(&kept[1]) < 0.5 * last(&measured), "{} of {}", last(&kept[1]), last(&measured));
    let loss = |watcher: &Watcher| *watcher.all("retain_loss").last().expect("steps");
    assert!(loss(&kept[0]) < loss(&measured) - 0.1, "{} and {}", loss(&kept[0]), loss(&measured));
    // The loss that is logged is the sum of both.
    let step = &kept[1].steps[3];
    let [loss, retain] = ["loss", "retain_loss"].map(|name| step.get(name).expect("a loss"));
    assert!((retain - last(&kept[1])).abs() < 1e-12 && loss != retain);
    let first = &kept[0].steps[0];
    let [loss, retain] = ["loss", "retain_loss"].map(|name| first.get(name).expect("a loss"));
    let own = measured.steps[0].get("loss").expect("a loss");
    assert!((loss - (own + 20.0 * retain)).abs() < 1e-3, "{loss} = {own} + 20 * {retain}");
}

#[test]
fn a_retain_term_accumulates_to_the_same_steps() {
    for form in [Retain::Sft, Retain::Kl] {
        let whole = retaining(form, |_| {});
        // Four batches of one example and one retained prompt each, and one batch that is split.
        let parts = retaining(form, |c| {
            (c.train.per_device_train_batch_size, c.train.gradient_accumulation_steps) = (1, 4);
            c.retain.batch_size = 1;
        });
        let split = retaining(form, |c| c.train.max_tokens_per_batch = Some(16));
        for other in [parts, split] {
            for name in ["loss", "retain_loss", "kl/retain", "grad_norm", "num_tokens"] {
                for (a, b) in whole.all(name).into_iter().zip(other.all(name)) {
                    assert!((a - b).abs() < 2e-4 * a.abs().max(1.0), "{form:?} {name}: {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn retained_answers_have_their_own_length() {
    let anchors_own = retaining(Retain::Sft, |_| {});
    let short = retaining(Retain::Sft, |c| c.retain.max_new_tokens = Some(1));
    let long = retaining(Retain::Sft, |c| c.retain.max_new_tokens = Some(9));
    // Four retained answers, of at most 1, 6 (as the anchors) and 9 tokens, are in the first step.
    let tokens = [&short, &anchors_own, &long].map(|watcher| watcher.all("num_tokens")[0]);
    assert!(tokens[0] < tokens[1] && tokens[1] < tokens[2], "{tokens:?}");
    assert!(tokens[1] - tokens[0] <= 20.0 && tokens[2] - tokens[1] <= 12.0, "{tokens:?}");
}
