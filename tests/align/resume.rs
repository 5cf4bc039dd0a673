//! A run that is resumed from a saved state equals a run that was never stopped, bit for bit: for every
//! method, every kind of reference, both optimizers.

use aweigh::config::{Beta, OnlineSampler, ReferenceSource, RunConfig};
use aweigh::loss::{Method, Retain};
use aweigh::model::Training;
use aweigh::optim::Optim;
use aweigh::train::{Metrics, Outcome, Setup, align};
use pollster::block_on;

use super::methods::{METHODS, examples_of};
use super::{Watcher, bytes, config, examples, gpu, load, setup, with_dropout};

/// All figures except the speed.
fn figures(all: &[Metrics]) -> Vec<Vec<(String, u64)>> {
    let timeless = |m: &Metrics| {
        m.0.iter().filter(|(n, _)| n != "tokens_per_second").map(|(n, v)| (n.clone(), v.to_bits())).collect()
    };
    all.iter().map(timeless).collect()
}

/// Runs `config` without a break, then resumes it from the state at each of its steps.
pub(super) fn check(name: &str, config: &RunConfig, setup: &dyn Fn() -> Setup) {
    let total = config.train.max_steps.expect("a number of steps");
    let go = |setup: Setup, take_at: Vec<usize>| -> (Outcome, Watcher) {
        let mut watcher = Watcher { take_at, ..Watcher::default() };
        let outcome = block_on(align(gpu(), setup, config, &mut watcher));
        (outcome.unwrap_or_else(|error| panic!("{name}: {error}")), watcher)
    };
    let (whole, undisturbed) = go(setup(), Vec::new());
    let (again, watched) = go(setup(), (0..total).collect());
    // Taking the state changes nothing.
    assert_eq!(bytes(&again), bytes(&whole), "{name}");
    assert_eq!(figures(&watched.steps), figures(&undisturbed.steps), "{name}");
    let steps: Vec<usize> = watched.taken.iter().map(|state| state.step).collect();
    assert_eq!(steps, (0..whole.steps).collect::<Vec<_>>(), "{name}");
    for state in watched.taken {
        let step = state.step;
        let (rest, seen) = go(Setup { resume: Some(state), ..setup() }, Vec::new());
        let place = format!("{name}, after step {step}");
        assert_eq!(figures(&seen.steps), figures(&undisturbed.steps[step..]), "{place}");
        let after = |m: &&Metrics| m.get("global_step") > Some(step as f64);
        let evaluations: Vec<Metrics> = undisturbed.evaluations.iter().filter(after).cloned().collect();
        assert_eq!(figures(&seen.evaluations), figures(&evaluations), "{place}");
        let later = |drawn: &super::Drawn| drawn.step > 0 && drawn.step >= step;
        let drawn = |w: &Watcher| -> Vec<_> {
            w.pools.iter().filter(|d| later(d)).map(|d| (d.line, d.step, d.ids.clone())).collect()
        };
        assert_eq!(drawn(&seen), drawn(&undisturbed), "{place}");
        assert_eq!(bytes(&rest), bytes(&whole), "{place}");
        assert_eq!(
            (rest.reason, rest.steps, rest.kept_step, rest.num_tokens, rest.anchors),
            (whole.reason, whole.steps, whole.kept_step, whole.num_tokens, whole.anchors),
            "{place}"
        );
        let ends = |outcome: &Outcome| {
            let both = [outcome.before.clone(), outcome.after.clone()];
            figures(&both.into_iter().flatten().collect::<Vec<_>>())
        };
        assert_eq!(ends(&rest), ends(&whole), "{place}");
    }
}

/// Two of five examples per step, shuffled: the last step of an epoch has one example.
pub(super) fn short() -> RunConfig {
    let mut config = config();
    config.train.max_steps = Some(4);
    config.train.per_device_train_batch_size = 2;
    config.train.shuffle = true;
    config.stop.eval_steps = 2;
    config.stop.enabled = false;
    config
}

#[test]
fn every_method_resumes_to_the_same_bits() {
    for method in METHODS {
        let mut config = short();
        config.method.method = method;
        config.train.max_steps = Some(3);
        let setup = || Setup { train: examples_of(method, 5), eval: examples_of(method, 2), ..setup() };
        check(&format!("{method:?}"), &config, &setup);
    }
}

#[test]
fn every_kind_of_run_resumes_to_the_same_bits() {
    type Change = fn(&mut RunConfig);
    let kinds: [(&str, Change); 7] = [
        ("moving references", |c| {
            c.reference.positive = ReferenceSource::Ema(0.5);
            c.reference.negative = ReferenceSource::CopyEvery(2);
        }),
        ("one that moves, one that does not", |c| c.reference.positive = ReferenceSource::CopyEvery(1)),
        ("online, from the policy", |c| {
            c.anchors.online_start_step = Some(1);
            c.anchors.refresh_every = 2;
            c.anchors.online_sampler = OnlineSampler::PolicyWithInstruction;
        }),
        ("accumulated", |c| {
            c.train.per_device_train_batch_size = 1;
            c.train.gradient_accumulation_steps = 3;
        }),
        ("8-bit moments", |c| c.train.optim = Optim::Adamw8bit),
        ("stopped by its rule", |c| {
            c.stop.enabled = true;
            c.stop.eval_steps = 1;
            (c.stop.margin, c.stop.patience) = (1e-6, 2);
            c.train.max_steps = Some(4);
        }),
        ("schedule", |c| {
            c.train.lr_scheduler_type = aweigh::optim::LrScheduler::Cosine;
            c.train.warmup_steps = Some(2);
        }),
    ];
    for (name, change) in kinds {
        let mut config = short();
        change(&mut config);
        let setup =
            || Setup { decoder: with_dropout(0.2), train: examples(5, 0), eval: examples(2, 20), ..setup() };
        check(name, &config, &setup);
    }
}

#[test]
fn a_full_run_resumes_to_the_same_bits() {
    let mut config = short();
    config.lora.enabled = false;
    config.train.learning_rate = Some(1e-3);
    let full = || Setup {
        decoder: load("tiny_tied", Training::Full),
        fresh_adapter: false,
        train: examples(5, 0),
        eval: Vec::new(),
        ..setup()
    };
    check("full", &config, &full);
    config.method.method = Method::Npo;
    check("full, without anchors", &config, &full);
}

/// Anchors that were sampled before a run was interrupted are not sampled again, and the other anchors equal
/// those of a run that was never stopped.
#[test]
fn drawing_goes_on_where_it_stopped() {
    // Four prompts per wave, where some are finished before others; and prompts whose samples take two waves.
    for (k, rows) in [(1, 4), (3, 2)] {
        drawing(k, rows);
    }
}

fn drawing(k: usize, rows: usize) {
    let mut config = short();
    config.method.num_samples = k;
    config.train.max_steps = Some(2);
    config.anchors.max_num_seqs = rows;
    config.anchors.max_new_tokens = 24;
    let setup = || Setup { train: examples(11, 0), eval: examples(5, 20), ..setup() };
    let go = |setup: Setup, mut watcher: Watcher| {
        let outcome = block_on(align(gpu(), setup, &config, &mut watcher));
        (outcome, watcher)
    };
    let (whole, undisturbed) = go(setup(), Watcher::default());
    let whole = whole.expect("a run");
    let told = |w: &Watcher| -> Vec<_> { w.pools.iter().map(|d| (d.line, d.step, d.ids.clone())).collect() };
    let (_, watched) = go(setup(), Watcher { take_draws: true, ..Watcher::default() });
    let mut steps: Vec<usize> = watched.taken.iter().map(|state| state.step).collect();
    assert!(steps.is_sorted() && steps.last() == Some(&16), "{steps:?}");
    steps.dedup();
    let waves = [4, 8, 11, 15, 16];
    assert!(
        steps.iter().any(|step| !waves.contains(step)),
        "prompts that are done within a wave are kept: {steps:?}"
    );
    let cut = |at: usize| {
        let (outcome, watcher) = go(setup(), Watcher { interrupt_draws_at: Some(at), ..Watcher::default() });
        assert!(matches!(outcome, Err(aweigh::Error::Interrupted)), "cut at {at}");
        watcher.taken
    };
    assert!(k == 1 || cut(0).is_empty(), "no prompt had all its samples");
    // A prompt whose samples were all empty is left out by a resumed run, too.
    let mut state = watched.taken.last().expect("a state").clone();
    let mut record: serde_json::Value = serde_json::from_slice(&state.record).expect("JSON");
    record["pools"][2]["anchors"] = serde_json::json!([]);
    record["pools"][2]["rounds"] = 4.into();
    state.record = serde_json::to_vec(&record).expect("JSON");
    let (outcome, seen) = go(Setup { resume: Some(state), ..setup() }, Watcher::default());
    outcome.expect("a run");
    assert!(seen.pools.len() == 10 && seen.pools.iter().all(|drawn| drawn.line != 3));
    let tokens = watched.drawn;
    let states: Vec<_> = [tokens / 3, tokens / 2, tokens - 1].into_iter().flat_map(cut).collect();
    assert!(states.len() > 1);
    let mut taken = watched.taken;
    taken.dedup_by_key(|state| state.step);
    for state in taken.into_iter().step_by(3).chain(states) {
        assert!(state.trained().is_none() && state.step > 0);
        let (rest, seen) = go(Setup { resume: Some(state), ..setup() }, Watcher::default());
        let rest = rest.expect("a run");
        assert!(seen.drawn < tokens, "all were drawn again");
        assert_eq!(told(&seen), told(&undisturbed));
        assert_eq!(figures(&seen.steps), figures(&undisturbed.steps));
        assert_eq!((bytes(&rest), rest.anchors), (bytes(&whole), whole.anchors));
    }
}

#[test]
fn with_a_retain_term() {
    for form in [Retain::Sft, Retain::Kl] {
        let mut config = config();
        config.train.max_steps = Some(3);
        (config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps) = (2, 2);
        config.retain.form = form;
        let setup = || Setup { retain: examples(5, 40), eval: examples(2, 20), ..setup() };
        check(&format!("retain {form:?}"), &config, &setup);
    }
}

#[test]
fn with_measured_constants() {
    let mut config = config();
    config.train.max_steps = Some(2);
    config.method.beta = Some(Beta::Auto);
    check("beta auto", &config, &|| Setup { eval: examples(2, 20), ..setup() });
}
