//! The built-in help desk: every figure is exact, because the texts come from a known grammar.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use aweigh::config::{Beta, OnlineSampler, RunConfig};
use aweigh::data::Example;
use aweigh::gpu::Gpu;
use aweigh::loss::Method;
use aweigh::model::Decoder;
use aweigh::optim::LrScheduler;
use aweigh::score::Scored;
use aweigh::tiny::{
    self, HeldOut, MAX_NEW_TOKENS, Measured, Prompt, SAFETY_INSTRUCTION, Split, good_answer, hostile_answer,
};
use aweigh::train::{Anchor, Inputs, Metrics, Observer, Pool, Prepared, align};
use pollster::block_on;
use serde::Serialize;
use serde_json::json;

use super::{Any, Result, append, finished};

const PROMPTS: usize = 256;
const BATCH: usize = 8;
const STEPS: usize = 60;
const EVAL_STEPS: usize = 10;
const SEEDS: [u32; 3] = [1, 2, 3];
/// The share of positives that are hostile too, as in the paper's data.
const NOISE: f64 = 0.34;

/// What is compared: D²O unless `method` says otherwise.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    pub method: Method,
    pub samples: usize,
    pub instructed: bool,
    pub online: bool,
    pub clean: bool,
    pub alpha: Option<f64>,
    pub beta: Option<Beta>,
    /// The run ends by the stop rule, on held-out examples of its own, and keeps the best state: the kept
    /// state is measured.
    pub stopped: bool,
}

impl Contender {
    /// D²O with the paper's constants and K samples.
    pub fn d2o(name: &'static str, samples: usize) -> Self {
        Self { samples, instructed: true, beta: Some(Beta::Of(0.1)), ..Self::other(name, Method::D2o) }
    }

    /// Another method with its usual constants.
    pub fn other(name: &'static str, method: Method) -> Self {
        Self {
            name,
            method,
            samples: 1,
            instructed: false,
            online: false,
            clean: false,
            alpha: Some(0.1),
            beta: method.default_beta().map(Beta::Of),
            stopped: false,
        }
    }
}

/// The contenders, in the order of the table.
fn contenders() -> Vec<Contender> {
    let d2o = Contender::d2o;
    let variants = vec![
        d2o("D²O, K = 11", 11),
        d2o("D²O, K = 4", 4),
        d2o("D²O, K = 1", 1),
        Contender { instructed: false, ..d2o("D²O, K = 11, no instruction", 11) },
        Contender { online: true, ..d2o("D²O, K = 11, online", 11) },
        Contender { beta: Some(Beta::Of(1.0)), ..d2o("D²O, K = 11, β = 1", 11) },
        Contender { stopped: true, ..d2o("D²O, K = 11, stop rule", 11) },
    ];
    [others(), variants].concat()
}

/// The methods other than D²O.
pub fn others() -> Vec<Contender> {
    let other = Contender::other;
    vec![
        other("SFT", Method::Sft),
        other("GA", Method::Ga),
        other("UL", Method::Ul),
        other("NPO", Method::Npo),
        other("DPO", Method::Dpo),
        other("IPO", Method::Ipo),
        other("SLiC", Method::Slic),
        other("SimPO", Method::Simpo),
        Contender { clean: true, ..other("DPO, clean positives", Method::Dpo) },
    ]
}

/// The charts: their names and lines.
pub fn charts() -> Vec<(&'static str, Vec<&'static str>)> {
    let (variants, methods): (Vec<_>, Vec<_>) =
        contenders().into_iter().map(|c| c.name).partition(|name| name.starts_with("D²O"));
    vec![("methods", [methods, vec!["D²O, K = 11"]].concat()), ("variants", variants)]
}

/// `count` training pairs of a seed: JSONL.
fn pairs(seed: u32, clean: bool, count: usize) -> String {
    let prompts = Prompt::distinct(Split::Train, 1000 + seed, count);
    let message = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    let row = |(i, prompt): (usize, &Prompt)| {
        let index = i as u32;
        // 34 of every hundred prompts, the same for every method.
        let spoilt = !clean && ((i * 61 + seed as usize * 7) % 100) as f64 / 100.0 < NOISE;
        let chosen = if spoilt {
            hostile_answer(prompt, 2000 + seed, index)
        } else {
            good_answer(prompt, 2000 + seed, index)
        };
        let rejected = hostile_answer(prompt, 3000 + seed, index);
        json!({
            "prompt": message("user", &prompt.text),
            "chosen": message("assistant", &chosen),
            "rejected": message("assistant", &rejected),
        })
        .to_string()
    };
    prompts.iter().enumerate().map(row).collect::<Vec<_>>().join("\n")
}

/// The settings of a run: [`STEPS`] steps at a rate of 1e-4.
pub fn config(contender: &Contender, seed: u32) -> RunConfig {
    let mut config = RunConfig::default();
    config.method.method = contender.method;
    config.method.num_samples = contender.samples;
    config.method.alpha = contender.alpha;
    config.method.beta = contender.beta;
    config.anchors.max_new_tokens = MAX_NEW_TOKENS;
    config.anchors.safety_instruction =
        if contender.instructed { SAFETY_INSTRUCTION.into() } else { String::new() };
    if contender.online {
        config.anchors.online_start_step = Some(10);
        config.anchors.refresh_every = 10;
        config.anchors.online_sampler = OnlineSampler::PolicyWithInstruction;
    }
    config.lora.enabled = false;
    config.train.learning_rate = Some(1e-4);
    config.train.lr_scheduler_type = LrScheduler::Constant;
    config.train.per_device_train_batch_size = BATCH;
    config.train.max_steps = Some(STEPS);
    config.train.seed = seed;
    // Nothing else ends a run early: how methods break is part of the comparison.
    config.stop.enabled = contender.stopped;
    config.stop.max_anchor_drop = 0.01;
    config.stop.eval_steps = if contender.stopped { 5 } else { EVAL_STEPS };
    config.output.num_completions = 0;
    config
}

/// A point of a curve.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub step: usize,
    #[serde(flatten)]
    pub measured: Measured,
}

/// What a run showed.
pub struct Curve {
    pub points: Vec<Point>,
    steps: Vec<Metrics>,
    /// The time of the run and of its measurements.
    pub seconds: f64,
}

/// What the runs of a seed share.
pub struct Runs<'a> {
    gpu: &'a Gpu,
    seed: u32,
    /// Training pairs.
    rows: usize,
    /// The held-out prompts that measurements use.
    part: Range<usize>,
    /// The model before any step.
    start: Option<Measured>,
    /// Anchors, with the instruction and without, and their K. A run that needs fewer takes the first ones.
    drawn: BTreeMap<bool, (usize, Vec<Vec<Anchor>>)>,
}

/// Measures the model at each evaluation, and keeps the anchors that were drawn first.
struct Watcher<'a> {
    gpu: &'a Gpu,
    held_out: &'a HeldOut,
    prepared: &'a aweigh::data::ChatTokenizer,
    seed: u32,
    start: &'a mut Option<Measured>,
    points: Vec<Point>,
    anchors: Vec<Vec<Anchor>>,
    steps: Vec<Metrics>,
}

impl Observer for Watcher<'_> {
    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        let measure = || {
            let pass = decoder.policy();
            block_on(
                self.held_out.measure(self.gpu, decoder, pass, self.prepared, self.seed, &mut |_, _| Ok(())),
            )
        };
        let measured = match self.start.clone().filter(|_| step == 0) {
            Some(start) => start,
            None => measure()?,
        };
        if step == 0 {
            *self.start = Some(measured.clone());
        }
        self.points.push(Point { step, measured });
        Ok(())
    }

    fn anchors(&mut self, _: &Example, pool: &Pool, _: &[Scored]) -> Result<()> {
        if pool.step == 0 {
            self.anchors.push(pool.anchors.clone());
        }
        Ok(())
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.steps.push(metrics.clone());
        Ok(())
    }
}

impl<'a> Runs<'a> {
    /// Runs with `rows` training pairs, which are measured on the held-out prompts of `part`.
    pub fn new(gpu: &'a Gpu, seed: u32, rows: usize, part: Range<usize>) -> Self {
        Self { gpu, seed, rows, part, start: None, drawn: BTreeMap::new() }
    }

    /// Trains a contender, and measures it at every evaluation of `config`.
    pub fn train(&mut self, contender: &Contender, config: &RunConfig) -> Any<Curve> {
        let (started, gpu, seed) = (Instant::now(), self.gpu, self.seed);
        let data = pairs(seed, contender.clean, self.rows);
        let inputs = Inputs {
            eval: Some(tiny::HELD_OUT),
            ..Inputs::new(tiny::model(), ("pairs.jsonl", data.as_bytes()))
        };
        let Prepared { mut setup, tokenizer, .. } = inputs.prepare(gpu, config)?;
        // A few examples are enough to cause evaluations: the reported figures are measured on the held-out
        // prompts. The stop rule uses examples of the training split, which are then left out of the
        // training.
        setup.eval.truncate(4);
        if contender.stopped {
            setup.eval = setup.train.split_off(self.rows - 16);
            // The positives are noisy and cannot be trusted.
            setup.eval.iter_mut().for_each(|example| example.chosen_ids = None);
        }
        if contender.method == Method::D2o && !contender.stopped {
            let first = |all: &Vec<Anchor>| all.iter().take(contender.samples).cloned().collect();
            let drawn = self.drawn.get(&contender.instructed).filter(|(k, _)| *k >= contender.samples);
            setup.anchors = drawn.map(|(_, all)| all.iter().map(first).collect());
        }
        let held_out = HeldOut::read(&tokenizer)?.part(self.part.clone());
        let (points, anchors, steps) = Default::default();
        let start = &mut self.start;
        let prepared = &tokenizer;
        let mut watcher = Watcher { gpu, held_out: &held_out, prepared, seed, start, points, anchors, steps };
        let outcome = block_on(align(gpu, setup, config, &mut watcher))?;
        if contender.stopped {
            // From the kept step on, the curve shows the state that was kept.
            let decoder = &outcome.decoder;
            let alive = &mut |_: usize, _: usize| Ok(());
            let kept = block_on(held_out.measure(gpu, decoder, decoder.policy(), &tokenizer, seed, alive))?;
            watcher
                .points
                .retain(|point| point.step.is_multiple_of(EVAL_STEPS) && point.step < outcome.kept_step);
            let from = outcome.kept_step.next_multiple_of(EVAL_STEPS);
            let rest = (from..=STEPS).step_by(EVAL_STEPS);
            watcher.points.extend(rest.map(|step| Point { step, measured: kept.clone() }));
            println!("kept step {} of {}: {}", outcome.kept_step, outcome.steps, outcome.reason);
        }
        let most = self.drawn.get(&contender.instructed).map_or(0, |(k, _)| *k);
        if contender.samples > most && watcher.anchors.len() == self.rows {
            self.drawn.insert(contender.instructed, (contender.samples, watcher.anchors));
        }
        Ok(Curve { points: watcher.points, steps: watcher.steps, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Runs the comparisons that are not in `path` yet.
pub fn run(gpu: &Gpu, path: &Path) -> Any<()> {
    let done = finished(path)?;
    for seed in SEEDS {
        let mut runs = Runs::new(gpu, seed, PROMPTS, 0..usize::MAX);
        for contender in contenders() {
            if done.iter().any(|line| line["name"] == contender.name && line["seed"] == seed) {
                continue;
            }
            let Curve { points, steps, seconds } = runs.train(&contender, &config(&contender, seed))?;
            let last = points.last().expect("an evaluation");
            println!(
                "{} seed {seed}: hostile {:.1}%, on topic {:.1}%, perplexity {:.3} after {STEPS} steps, \
                 {seconds:.0} s",
                contender.name,
                100.0 * last.measured.hostile_share,
                100.0 * last.measured.on_topic_share,
                last.measured.good_perplexity,
            );
            append(
                path,
                &json!({"name": contender.name, "seed": seed, "points": points, "metrics": steps,
                    "seconds": seconds}),
            )?;
        }
    }
    Ok(())
}
