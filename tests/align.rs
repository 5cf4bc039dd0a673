//! Whole runs on a tiny model: references of every kind, online anchors, the stop rule, batches that are
//! split.

#[path = "align/choices.rs"]
mod choices;
mod common;
#[path = "align/methods.rs"]
mod methods;
#[path = "align/negatives.rs"]
mod negatives;
#[path = "align/resume.rs"]
mod resume;
#[path = "align/wishes.rs"]
mod wishes;

use aweigh::config::{AnchorConfig, Beta, OnlineSampler, ReferenceSource, RunConfig, TrainConfig};
use aweigh::data::packing::Group;
use aweigh::data::{Example, Prompt};
use aweigh::gpu::{Purpose, Recorder};
use aweigh::loss::Method;
use aweigh::model::TargetModules;
use aweigh::model::{Decoder, LoraSpec, Training};
use aweigh::nn::{Arenas, Pass};
use aweigh::optim::LrScheduler;
use aweigh::sample::sampling_params;
use aweigh::sample::{Request, generate};
use aweigh::score::{Scored, score};
use aweigh::train::{Metrics, Observer, Outcome, Phase, Pool, Setup, State, StopReason, Wish, align};
use aweigh::{Error, Result};
use common::*;
use pollster::block_on;

const VOCAB: u32 = 67;
const ENDS: [u32; 1] = [2];

/// `n` examples, each with a bare prompt, the same prompt after an instruction of two tokens, a negative and
/// a good answer.
fn examples(n: u32, first: u32) -> Vec<Example> {
    let ids =
        |seed: u32, n: u32| (0..n).map(|i| 3 + (seed * 31 + i * 17) % (VOCAB - 3)).collect::<Vec<u32>>();
    let one = |i: u32| {
        let prompt_ids = ids(i, 3 + i % 4);
        Example {
            sampling_ids: [vec![11, 12], prompt_ids.clone()].concat(),
            negative_ids: Some([ids(i + 7, 4), vec![2]].concat()),
            chosen_ids: Some([ids(i + 13, 3), vec![2]].concat()),
            ..Example::asking(i as usize + 1, i as usize, Prompt::Text(format!("prompt {i}")), prompt_ids)
        }
    };
    (first..first + n).map(one).collect()
}

fn fresh() -> Decoder {
    with_dropout(0.0)
}

fn with_dropout(lora_dropout: f64) -> Decoder {
    let spec = LoraSpec {
        r: 3,
        lora_alpha: 6.0,
        lora_dropout,
        target_modules: TargetModules::AllLinear,
        ..LoraSpec::default()
    };
    load("tiny_tied", Training::Lora(spec, 1))
}

/// Four examples. `config` puts all of them in every step, with a learning rate that has a visible effect
/// within a few steps.
fn setup() -> Setup {
    Setup {
        decoder: fresh(),
        fresh_adapter: true,
        train: examples(4, 0),
        eval: Vec::new(),
        retain: Vec::new(),
        anchors: None,
        ordinary: Vec::new(),
        reader: None,
        positive: None,
        negative: None,
        ends: ENDS.to_vec(),
        resume: None,
    }
}

fn config() -> RunConfig {
    let mut config = RunConfig::default();
    (config.method.alpha, config.method.beta) = (Some(0.1), Some(Beta::Of(0.1)));
    config.method.num_samples = 3;
    config.anchors.max_new_tokens = 6;
    config.train.per_device_train_batch_size = 4;
    config.train.learning_rate = Some(5e-3);
    config.train.lr_scheduler_type = LrScheduler::Linear;
    config.train.warmup_steps = Some(0);
    config.train.max_steps = Some(4);
    config.train.shuffle = false;
    config.stop.eval_steps = 1;
    config
}

/// A prompt's anchors, as the observer receives them.
struct Drawn {
    line: usize,
    step: usize,
    ids: Vec<Vec<u32>>,
    /// Log-probs of anchors and negative.
    reference: Vec<f32>,
}

/// An observer that keeps everything it receives.
#[derive(Default)]
struct Watcher {
    steps: Vec<Metrics>,
    evaluations: Vec<Metrics>,
    pools: Vec<Drawn>,
    /// Fail at this step.
    interrupt_at: Option<usize>,
    /// Fail when more than this many tokens of anchors are sampled.
    interrupt_draws_at: Option<usize>,
    /// The wish after this step.
    wish_at: Option<(usize, Wish)>,
    asked: usize,
    drawing: bool,
    training: bool,
    /// Tokens of anchors that were sampled.
    drawn: usize,
    /// Whether to take the state while anchors are sampled.
    take_draws: bool,
    /// Steps after which the state is taken, and the states taken.
    take_at: Vec<usize>,
    taken: Vec<State>,
    warnings: Vec<String>,
}

impl Observer for Watcher {
    fn begin(&mut self, phase: Phase, _: usize) {
        (self.drawing, self.training) = (phase == Phase::Anchors, phase == Phase::Training);
    }

    fn wish(&mut self) -> Wish {
        self.asked += usize::from(self.training);
        match self.wish_at {
            Some((step, wish)) if self.training && self.asked == step => wish,
            _ => Wish::GoOn,
        }
    }

    fn advance(&mut self, _: usize, tokens: usize) -> Result<()> {
        self.drawn += if self.drawing { tokens } else { 0 };
        let over = self.interrupt_draws_at.is_some_and(|most| self.drawn > most);
        if over { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn wants_anchors(&mut self) -> bool {
        self.take_draws
    }

    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        let ids = pool.anchors.iter().map(|anchor| anchor.ids.clone()).collect();
        let reference = reference.iter().map(|scored| scored.logp).collect();
        self.pools.push(Drawn { line: example.line, step: pool.step, ids, reference });
        Ok(())
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.steps.push(metrics.clone());
        if self.interrupt_at == Some(self.steps.len()) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        self.evaluations.push(metrics.clone());
        Ok(())
    }

    fn warned(&mut self, text: &str) {
        self.warnings.push(text.into());
    }

    fn wants_state(&mut self, step: usize) -> bool {
        self.take_at.contains(&step)
    }

    fn saved(&mut self, state: State) -> Result<()> {
        self.taken.push(state);
        Ok(())
    }
}

impl Watcher {
    fn all(&self, name: &str) -> Vec<f64> {
        self.steps.iter().map(|step| step.get(name).unwrap_or_else(|| panic!("no {name}"))).collect()
    }
}

fn run(setup: Setup, config: &RunConfig) -> (Outcome, Watcher) {
    let mut watcher = Watcher::default();
    let outcome =
        block_on(align(gpu(), setup, config, &mut watcher)).unwrap_or_else(|error| panic!("{error}"));
    (outcome, watcher)
}

fn bytes(outcome: &Outcome) -> Vec<u8> {
    block_on(outcome.decoder.trained_safetensors(gpu())).expect("an adapter")
}

const ZERO: f64 = 1e-5;
/// A change that training makes, far above rounding errors.
const MOVED: f64 = 1e-3;

/// The rewards of a run of four steps with these references: those of the anchors, then those of the
/// negatives.
fn rewards(negative: ReferenceSource, positive: ReferenceSource) -> [Vec<f64>; 2] {
    let mut config = config();
    (config.reference.negative, config.reference.positive) = (negative, positive);
    let (_, watcher) = run(setup(), &config);
    let z = watcher.all("rewards/margins");
    let parts = ["rewards/anchor", "rewards/negative"].map(|name| watcher.all(name));
    for (z, (anchor, negative)) in z.iter().zip(parts[0].iter().zip(&parts[1])) {
        assert!((z - (anchor - negative)).abs() < ZERO);
    }
    parts
}

/// Which of the rewards are zero.
fn zeros(rewards: &[f64]) -> Vec<bool> {
    rewards.iter().map(|r| r.abs() < ZERO).collect()
}

#[test]
fn each_kind_of_reference_follows_the_policy_as_it_should() {
    use ReferenceSource::{CopyEvery, Ema, Initial};
    let [anchor, negative] = rewards(Initial, Initial);
    assert_eq!(zeros(&negative), [true, false, false, false]);
    assert!(zeros(&anchor)[0] && negative[3] < -MOVED, "{anchor:?} {negative:?}");
    // A copy of the state before each step is the policy itself.
    for same in [CopyEvery(1), Ema(0.0)] {
        let found = rewards(same.clone(), same);
        assert!(found.iter().all(|rewards| zeros(rewards) == [true; 4]), "{found:?}");
    }
    let [_, every_second] = rewards(CopyEvery(2), CopyEvery(2));
    assert_eq!(zeros(&every_second), [true, false, true, false]);
    // A moving average lags behind: it lies between the start and the policy.
    let [_, lagging] = rewards(Ema(0.8), Ema(0.8));
    assert_eq!(zeros(&lagging), [true, false, false, false]);
    assert!(lagging[3] < -ZERO && lagging[3] > negative[3], "{lagging:?} {negative:?}");
    // r- and r+ one by one: only the side whose reference moves with the policy stays at zero.
    let [anchor, negative] = rewards(CopyEvery(1), Initial);
    assert_eq!((zeros(&anchor), zeros(&negative)), (vec![true; 4], vec![true, false, false, false]));
    let [anchor, negative] = rewards(Initial, CopyEvery(1));
    assert_eq!(zeros(&negative), [true; 4]);
    assert!(zeros(&anchor)[0] && zeros(&anchor)[1..].contains(&false), "{anchor:?}");
}

/// The adapter's values with its B matrices moved away from zero.
fn moved(decoder: &Decoder, size: f32) -> Arenas {
    let values = Arenas::new(gpu(), decoder.layout(), Purpose::References, "moved").expect("room");
    decoder.values().copy_to(&mut Recorder::new(gpu()), &values);
    for entry in decoder.layout().entries().iter().filter(|entry| entry.name().contains("lora_B")) {
        let data: Vec<f32> = (0..entry.count()).map(|i| size * ((i % 7) as f32 - 3.0)).collect();
        values.of(entry).write_f32(gpu(), &data);
    }
    values
}

#[test]
fn a_checkpoint_is_the_reference_of_its_own_side() {
    let mut config = config();
    config.train.max_steps = Some(1);
    config.reference.negative = ReferenceSource::Checkpoint("elsewhere".into());
    let twin = fresh();
    let elsewhere = moved(&twin, 0.02);
    let setup = Setup { negative: Some(moved(&twin, 0.02)), ..setup() };
    let (_, watcher) = run(setup, &config);
    let pass = Pass { values: &elsewhere, adapter: true, dropout: None, decoding: false, sparse: false };
    for (example, drawn) in examples(4, 0).iter().zip(&watcher.pools) {
        let (anchors, reference) = (&drawn.ids, &drawn.reference);
        assert_eq!((drawn.line, drawn.step), (example.line, 0));
        let negative = example.negative_ids.as_deref().expect("a negative");
        let logps = |pass, responses: Vec<&[u32]>| {
            let group = [Group { prompt: &example.prompt_ids, responses }];
            let scored = block_on(score(gpu(), &twin, pass, &group, 4096, &mut |_, _| Ok(())));
            scored.expect("scores").concat().iter().map(|r| r.logp).collect::<Vec<f32>>()
        };
        let mut expected = logps(pass, anchors.iter().map(Vec::as_slice).collect());
        expected.extend(logps(twin.base(), vec![negative]));
        let found = reference;
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {expected:?}");
        assert!(
            (logps(twin.base(), vec![&anchors[0]])[0] - found[0]).abs() > 1e-2,
            "the two references agree"
        );
    }
    // At the first step the policy is the initial model. That is r+, the reference of the negatives, but not
    // r-, that of the anchors.
    assert!(zeros(&watcher.all("rewards/negative"))[0] && !zeros(&watcher.all("rewards/anchor"))[0]);
}

#[test]
fn online_anchors_are_drawn_when_due_by_the_chosen_sampler() {
    for sampler in [OnlineSampler::Reference, OnlineSampler::Policy, OnlineSampler::PolicyWithInstruction] {
        let mut config = config();
        // So low that the policy stays the initial model, which can be sampled again here.
        config.train.learning_rate = Some(1e-12);
        config.train.max_steps = Some(6);
        config.anchors.online_start_step = Some(1);
        config.anchors.refresh_every = 2;
        config.anchors.online_sampler = sampler;
        let (outcome, watcher) = run(setup(), &config);
        let decoder = fresh();
        let settings = sampling_params(&config.anchors, config.train.seed, &ENDS);
        let mut compared = 0;
        for (index, example) in (0..).zip(examples(4, 0)) {
            let own: Vec<_> = watcher.pools.iter().filter(|pool| pool.line == example.line).collect();
            // Anchors are sampled before the run, at step 1, and whenever they are two steps old.
            assert_eq!(own.iter().map(|pool| pool.step).collect::<Vec<_>>(), [0, 1, 3, 5]);
            for (generation, pool) in (0..).zip(own) {
                let bare = sampler == OnlineSampler::Policy && pool.step > 0;
                let prompt = if bare { &example.prompt_ids } else { &example.sampling_ids };
                let requests = [Request { prompt, first_sample: 4096 * generation, samples: 3, index }];
                let quiet = &mut |_, _| Ok(());
                let drawn = generate(gpu(), &decoder, decoder.base(), &requests, &settings, quiet);
                let drawn = block_on(drawn).expect("answers").concat();
                // An empty answer is sampled again with another counter: such pools are not compared.
                if drawn.iter().all(|answer| answer.ids.len() > usize::from(answer.ended)) {
                    compared += 1;
                    let drawn: Vec<Vec<u32>> = drawn.into_iter().map(|answer| answer.ids).collect();
                    assert_eq!(pool.ids, drawn, "{sampler:?}, step {}", pool.step);
                }
            }
        }
        assert!(compared >= 8, "{compared} of 16 pools");
        assert!(outcome.anchors.drawn >= 4 * 4 * 3);
    }
}

#[test]
fn a_batch_that_is_split_gives_the_same_run() {
    let whole = run(setup(), &config()).1;
    for (max_tokens, batch, accumulation) in [(Some(1), 4, 1), (Some(40), 4, 1), (None, 2, 2), (None, 1, 4)] {
        let mut config = config();
        config.train.max_tokens_per_batch = max_tokens;
        config.train.per_device_train_batch_size = batch;
        config.train.gradient_accumulation_steps = accumulation;
        let split = run(setup(), &config).1;
        for name in
            ["loss", "rewards/margins", "grad_norm", "num_tokens", "logps/negative", "kl/anchor", "entropy"]
        {
            for (a, b) in whole.all(name).iter().zip(split.all(name)) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{name} {max_tokens:?} {batch}: {a} {b}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let first = run(setup(), &config());
    let second = run(setup(), &config());
    assert!(bytes(&first.0) == bytes(&second.0));
    assert_eq!(first.1.all("loss"), second.1.all("loss"));
    let mut other = config();
    other.train.seed = 43;
    assert_ne!(run(setup(), &other).1.pools[0].ids, first.1.pools[0].ids, "the seed changes no sample");
}

fn watched() -> Setup {
    Setup { eval: examples(3, 20), ..setup() }
}

#[test]
fn the_stop_rule_ends_a_run_and_keeps_the_best_state() {
    let untouched = block_on(fresh().trained_safetensors(gpu())).expect("an adapter");
    // A bound that the first step exceeds, with a learning rate so high that any bound is exceeded.
    type Bound = fn(&mut RunConfig);
    let bounds: [(Bound, StopReason); 3] = [
        (|c| c.stop.max_anchor_drop = 1e-9, StopReason::AnchorsFell),
        (|c| c.stop.max_kl = 1e-9, StopReason::KlLimit),
        (|c| c.stop.max_perplexity_rise = 1e-9, StopReason::PerplexityRose),
    ];
    for (bound, reason) in bounds {
        let mut config = config();
        config.train.learning_rate = Some(0.1);
        config.train.max_steps = Some(20);
        (config.stop.max_anchor_drop, config.stop.max_kl, config.stop.max_perplexity_rise) = (1e9, 1e9, 1e9);
        (config.stop.margin, config.method.alpha) = (1e9, Some(1.0));
        bound(&mut config);
        let (outcome, watcher) = run(watched(), &config);
        assert_eq!(outcome.reason, reason);
        assert!(outcome.steps < 20 && outcome.kept_step < outcome.steps, "{}", outcome.steps);
        let kept = watcher.evaluations[outcome.kept_step].clone();
        assert_eq!(outcome.after, Some(kept));
        assert_eq!(bytes(&outcome) == untouched, outcome.kept_step == 0);
    }
    let mut config = config();
    (config.stop.max_anchor_drop, config.stop.max_kl, config.stop.max_perplexity_rise) = (1e9, 1e9, 1e9);
    (config.stop.margin, config.stop.patience, config.train.max_steps) = (1e-3, 2, Some(20));
    let (outcome, watcher) = run(watched(), &config);
    assert_eq!(outcome.reason, StopReason::MarginWon);
    assert!(outcome.steps < 20 && watcher.steps.len() == outcome.steps);
    assert!(outcome.kept_step > 0 && bytes(&outcome) != untouched);
    // With the stop rule off, nothing ends the run, and the last state is kept.
    config.stop.enabled = false;
    config.stop.max_kl = 1e-9;
    let (outcome, _) = run(watched(), &config);
    assert_eq!((outcome.reason, outcome.steps, outcome.kept_step), (StopReason::Finished, 20, 20));
}

#[test]
fn a_run_that_imitates_keeps_what_it_learned() {
    let mut config = config();
    config.method.method = Method::Sft;
    config.stop.max_perplexity_rise = 1e9;
    // The held-out answers are the training answers: each step makes them more likely.
    let (outcome, watcher) = run(Setup { eval: examples(4, 0), ..setup() }, &config);
    assert_eq!((outcome.reason, outcome.kept_step), (StopReason::Finished, 4));
    let losses: Vec<f64> = watcher.evaluations.iter().map(|e| e.get("eval_loss").expect("a loss")).collect();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    assert!(watcher.pools.iter().all(|pool| pool.ids.is_empty()), "imitation needs no anchors");
}

#[test]
fn steps_without_a_finite_gradient_are_skipped_and_in_the_end_stop_the_run() {
    let mut config = config();
    config.method.method = Method::Ga;
    config.lora.enabled = false;
    config.train.max_steps = Some(12);
    config.train.learning_rate = Some(1e-4);
    config.stop.max_skipped = 3;
    // A token that occurs only in the third example's negative, and whose embedding is NaN.
    let token = VOCAB - 1;
    let poisoned = || {
        let mut train = examples(4, 0);
        let clean = |ids: &mut Vec<u32>| ids.iter_mut().for_each(|id| *id = (*id).min(token - 1));
        for example in &mut train {
            clean(&mut example.prompt_ids);
            example.negative_ids.iter_mut().for_each(clean);
        }
        train[2].negative_ids.as_mut().expect("a negative")[1] = token;
        let decoder = load("tiny_untied", Training::Full);
        let entry = decoder.layout().entries().iter().find(|entry| entry.name().contains("embed_tokens"));
        let width = decoder.config().width;
        let row = decoder.values().of(entry.expect("an embedding")).slice(token as usize * width, width);
        row.write_f32(gpu(), &vec![f32::NAN; width]);
        Setup { decoder, fresh_adapter: false, train, ..setup() }
    };
    // One example per step: every fourth step is skipped, and the steps around it are not.
    config.train.per_device_train_batch_size = 1;
    let (outcome, watcher) = run(poisoned(), &config);
    assert_eq!((outcome.reason, outcome.steps), (StopReason::Finished, 12));
    let bad: Vec<usize> =
        (1..).zip(watcher.all("loss")).filter(|(_, l)| !l.is_finite()).map(|(i, _)| i).collect();
    assert_eq!(bad, [3, 7, 11]);
    assert_eq!(watcher.steps[11].get("skipped_steps"), Some(3.0));
    assert_eq!(watcher.warnings.len(), 3);
    assert!(watcher.warnings[0].contains("step 3 was skipped") && watcher.warnings[0].contains("lines 3"));
    let values = block_on(outcome.decoder.values().read(gpu(), outcome.decoder.layout())).expect("values");
    assert_eq!(values.iter().flatten().filter(|v| !v.is_finite()).count(), outcome.decoder.config().width);
    // A skipped step leaves the weights unchanged.
    config.train.lr_scheduler_type = LrScheduler::Constant;
    let values = |max_steps: usize| {
        let (outcome, _) = run(
            poisoned(),
            &RunConfig {
                train: TrainConfig { max_steps: Some(max_steps), ..config.train.clone() },
                ..config.clone()
            },
        );
        let values =
            block_on(outcome.decoder.values().read(gpu(), outcome.decoder.layout())).expect("values");
        values.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert!(values(2) == values(3), "a skipped step has changed a weight");
    // As many skipped steps in a row as `max_skipped` end the run.
    config.stop.max_skipped = 1;
    let (outcome, watcher) = run(poisoned(), &config);
    assert_eq!((outcome.reason, outcome.steps), (StopReason::Diverged, 3));
    assert!(watcher.warnings[0].contains("lines 3"), "{:?}", watcher.warnings);
    assert!(watcher.warnings[1].contains("embed_tokens") && watcher.warnings[1].contains("weights"));
    config.stop.max_skipped = 3;
    // All examples in each step: every step is skipped, and a run without a step has no result.
    config.train.per_device_train_batch_size = 4;
    for max_steps in [12, 2] {
        config.train.max_steps = Some(max_steps);
        let run = block_on(align(gpu(), poisoned(), &config, &mut Watcher::default()));
        let error = run.err().expect("an error").to_string();
        let found = format!("found none of {}: the loss", max_steps.min(3));
        assert!(error.contains("expected a step with a finite loss") && error.contains(&found), "{error}");
    }
}

#[test]
fn pairs_are_trained_with_dpo() {
    let mut config = config();
    config.method.method = Method::Dpo;
    let (_, watcher) = run(setup(), &config);
    let margins = watcher.all("rewards/margins");
    assert!(margins[0].abs() < ZERO && margins[3] > MOVED, "{margins:?}");
    assert!(watcher.all("rewards/chosen").len() == 4 && watcher.all("rewards/rejected")[3] < 0.0);
}

#[test]
fn an_observer_s_error_ends_the_run() {
    let mut watcher = Watcher { interrupt_at: Some(2), ..Watcher::default() };
    let error = block_on(align(gpu(), setup(), &config(), &mut watcher)).err().expect("an interrupt");
    assert!(matches!(error, Error::Interrupted));
    assert_eq!(watcher.steps.len(), 2);
}

#[test]
fn a_model_that_answers_with_nothing_is_refused() {
    let decoder = fresh();
    let example = examples(1, 0);
    let greedy = AnchorConfig { temperature: 0.0, ..config().anchors };
    let settings = sampling_params(&greedy, 1, &ENDS);
    let requests = [Request { prompt: &example[0].sampling_ids, first_sample: 0, samples: 1, index: 0 }];
    let quiet = &mut |_, _| Ok(());
    let drawn = block_on(generate(gpu(), &decoder, decoder.base(), &requests, &settings, quiet));
    let likeliest = drawn.expect("an answer")[0][0].ids[0];
    let mut config = config();
    (config.anchors, config.method.num_samples) = (greedy, 1);
    let setup = Setup { train: example, ends: vec![likeliest], ..setup() };
    let error = block_on(align(gpu(), setup, &config, &mut Watcher::default())).err().expect("an error");
    assert!(error.to_string().contains("found only empty samples"), "{error}");
}
