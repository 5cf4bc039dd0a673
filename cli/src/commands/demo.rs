//! `aweigh demo`: aligns the built-in model and shows what changed.

use std::path::PathBuf;
use std::time::Instant;

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, at_least_one};
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Unit, seconds};
use crate::terminal::text::{bytes, table};
use crate::watch::Watch;
use aweigh::config::{Beta, RunConfig};
use aweigh::data::ChatTokenizer;
use aweigh::error::Result;
use aweigh::files::{Model, TRAIN_COPY, write_whole};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::nn::Pass;
use aweigh::optim::LrScheduler;
use aweigh::run::{self, Material, Place};
use aweigh::tiny::{self, HeldOut, MAX_NEW_TOKENS, Measured};
use aweigh::train::{Inputs, StopReason};

/// Align the built-in model: a help desk that is rude a third of the time.
///
/// Samples the model's own answers with a safety instruction, trains with D²O against 256 flagged answers,
/// and measures before and after on 200 held-out prompts: how many newly sampled answers (temperature 0.9,
/// top-p 0.95) are hostile and how many are on topic (exact: the texts come from a known grammar), the
/// log-prob of given hostile answers and the perplexity of given good ones. Takes minutes, even without a
/// GPU.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the run; without it, nothing is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Replace an earlier run in --output-dir
    #[arg(long, requires = "output_dir")]
    pub overwrite: bool,
    /// Maximum number of optimizer steps; without it, 32. The stop rule may end the run earlier
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<usize>,
    /// Random seed for training and sampling
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u32,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh demo
  aweigh demo --json --output-dir demo-run
Afterwards:
  aweigh generate --model demo-run/model";

/// The demo's settings.
fn config(args: &Args) -> RunConfig {
    let mut config = RunConfig::default();
    config.model.model = tiny::NAME.into();
    // The built-in rows are written to a file, so that `align --config` can repeat the run.
    config.data.train = match &args.output_dir {
        Some(folder) => folder.join(TRAIN_COPY),
        None => tiny::NEGATIVES.0.into(),
    };
    config.anchors.safety_instruction = tiny::SAFETY_INSTRUCTION.into();
    config.anchors.max_new_tokens = MAX_NEW_TOKENS;
    // The model is small enough to train all weights; the larger beta keeps it closer to its good answers.
    config.lora.enabled = false;
    config.method.alpha = Some(0.1);
    config.method.beta = Some(Beta::Of(0.2));
    config.method.num_samples = 11;
    config.train.learning_rate = Some(1e-4);
    config.train.lr_scheduler_type = LrScheduler::Constant;
    config.train.per_device_train_batch_size = 8;
    config.train.max_steps = Some(args.max_steps.unwrap_or(32));
    config.train.seed = args.seed;
    (config.stop.eval_steps, config.stop.max_anchor_drop) = (4, 0.01);
    config.output.output_dir = args.output_dir.clone().unwrap_or_default();
    config.gpu.adapter = args.gpu.gpu.clone();
    config.gpu.tuning = !args.gpu.no_tuning;
    config.gpu.precision = args.gpu.precision;
    config
}

/// The figures of `--json`.
#[derive(Serialize)]
struct Figures<'a> {
    before: &'a Measured,
    after: &'a Measured,
    steps: usize,
    kept_step: usize,
    reason: StopReason,
    seconds: f64,
    gpu: String,
    memory_peak_bytes: u64,
}

/// Runs the demo.
///
/// # Errors
/// GPU errors; an output folder that is already in use.
pub fn run(args: Args, output: &Output) -> Result<()> {
    at_least_one("--max-steps", args.max_steps.unwrap_or(1))?;
    let started = Instant::now();
    let config = config(&args);
    let mut held_out = None;
    let mut before = None;
    let watch = Watch::new(output, "aweigh align --resume")
        .without_plan()
        .with_file(TRAIN_COPY, tiny::NEGATIVES.1.into());
    let watch = watch.on_loaded(|loaded| {
        let prompts = HeldOut::read(loaded.tokenizer)?;
        let (decoder, tokenizer) = (&loaded.setup.decoder, loaded.tokenizer);
        let what = "measuring before";
        before = Some(measure(
            &prompts,
            loaded.gpu,
            decoder,
            decoder.base(),
            (tokenizer, args.seed, what),
            output,
        )?);
        held_out = Some(prompts);
        Ok(())
    });
    let place = match args.output_dir {
        Some(_) => Place::New { overwrite: args.overwrite },
        None => Place::Nothing,
    };
    let finished = watch.over(|watch| run::run(&BuiltIn(Model::tiny()), config, place, watch))?;
    let (held_out, before) = held_out.zip(before).expect("the run has called on_loaded");
    let (gpu, outcome) = (&finished.gpu, &finished.outcome);
    let (decoder, what) = (&outcome.decoder, "measuring after");
    let with = (&*finished.tokenizer, args.seed, what);
    let after = measure(&held_out, gpu, decoder, decoder.policy(), with, output)?;
    let figures = Figures {
        before: &before,
        after: &after,
        steps: outcome.steps,
        kept_step: outcome.kept_step,
        reason: outcome.reason,
        seconds: started.elapsed().as_secs_f64(),
        gpu: gpu.summary().name.clone(),
        memory_peak_bytes: gpu.ledger().total().peak,
    };
    if let Some(folder) = &finished.folder {
        let json = serde_json::to_vec_pretty(&figures).unwrap_or_default();
        write_whole(&folder.path().join("demo.json"), &json)?;
    }
    output.result(report(&held_out, &figures, started), &figures)
}

/// The built-in model and its flagged answers.
struct BuiltIn(Model);

impl Material for BuiltIn {
    fn model(&self) -> &Model {
        &self.0
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { retain: Some(tiny::ORDINARY), ..Inputs::new(tiny::model(), tiny::NEGATIVES) }
    }
}

fn measure(
    held_out: &HeldOut,
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass,
    (tokenizer, seed, what): (&ChatTokenizer, u32, &str),
    output: &Output,
) -> Result<Measured> {
    let mut progress = output.progress(what, held_out.len() as u64, Unit::Items);
    let mut advance = |items: usize, tokens: usize| {
        progress.advance(items as u64, tokens as u64);
        interrupt::check()
    };
    let measured = block_on(held_out.measure(gpu, decoder, pass, tokenizer, seed, &mut advance))?;
    progress.finish();
    Ok(measured)
}

/// The table, and up to three prompts with their answers before and after.
fn report(held_out: &HeldOut, figures: &Figures, started: Instant) -> String {
    let (before, after) = (figures.before, figures.after);
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let row = |name: &str, f: &dyn Fn(&Measured) -> String| vec![name.to_string(), f(before), f(after)];
    let rows = [
        row("hostile answers", &|m| percent(m.hostile_share)),
        row("answers on topic", &|m| percent(m.on_topic_share)),
        row("log-prob of held-out hostile answers", &|m| format!("{:.2}", m.negative_logp)),
        row("perplexity of held-out good answers", &|m| format!("{:.4}", m.good_perplexity)),
    ];
    let mut text = table(&["200 held-out prompts", "before", "after"], &rows);
    // Prompts whose answer was hostile before show best what changed.
    let hostile = (0..held_out.len()).filter(|&i| held_out.judge(i, &before.answers[i]).hostile);
    for i in hostile.take(3) {
        text += &format!(
            "\n\n  customer  {}\n  before    {}\n  after     {}",
            held_out.prompts[i], before.answers[i], after.answers[i]
        );
    }
    text + &format!(
        "\n\n{} steps ({}), kept the state of step {}; {} in total, peak GPU memory {}",
        figures.steps,
        figures.reason,
        figures.kept_step,
        seconds(started.elapsed()),
        bytes(figures.memory_peak_bytes),
    )
}
