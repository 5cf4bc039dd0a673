//! `aweigh demo`: aligns the built-in model and shows what changed.

use std::path::PathBuf;
use std::time::Instant;

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, at_least_one};
use crate::engine;
use crate::record::Recorder;
use crate::saver::{Disk, Saver, origin};
use crate::terminal::interrupt;
use crate::terminal::output::{Output, bytes, table};
use crate::terminal::progress::{Unit, seconds};
use aweigh::assets;
use aweigh::config::RunConfig;
use aweigh::error::{Error, Result};
use aweigh::eval::helpdesk::{self, HeldOut, MAX_NEW_TOKENS, Measured};
use aweigh::files::{Model, RunFolder, TRAIN_COPY, checkpoint, write_whole};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::nn::Pass;
use aweigh::optim::LrScheduler;
use aweigh::train::{Inputs, Prepared, StopReason};

/// Align the built-in model: a help desk that is rude a third of the time.
///
/// It samples the model's own answers under a kind instruction, pushes 256 flagged answers away with D²O, and
/// measures before and after on 200 held-out prompts: how many fresh answers (temperature 0.9, top-p 0.95)
/// are hostile and how many are on topic (exact: the texts come from a known grammar), the log-prob of
/// hostile answers, the perplexity of good ones. Minutes, also without a GPU.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Keep the run's folder here; without it nothing is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Replace an earlier run in --output-dir
    #[arg(long, requires = "output_dir")]
    pub overwrite: bool,
    /// Stop after this many optimizer steps; without it the stop rule decides, and 32 steps at the latest
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<usize>,
    /// Seed of the run and of the samples
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
    config.model.model = assets::NAME.into();
    config.data.train = assets::NEGATIVES.0.into();
    config.anchors.safety_instruction = helpdesk::SAFETY_INSTRUCTION.into();
    config.anchors.max_new_tokens = MAX_NEW_TOKENS;
    // A model this small is trained whole; the larger beta holds it closer to its good answers.
    config.lora.enabled = false;
    config.method.beta = Some(0.2);
    config.train.learning_rate = 1e-4;
    config.train.lr_scheduler_type = LrScheduler::Constant;
    config.train.per_device_train_batch_size = 8;
    config.train.max_steps = Some(args.max_steps.unwrap_or(32));
    config.train.seed = args.seed;
    config.stop.eval_steps = 4;
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
/// What the device reports; a folder that is taken.
pub fn run(args: Args, output: &Output) -> Result<()> {
    at_least_one("--max-steps", args.max_steps.unwrap_or(1))?;
    if let Some(folder) = &args.output_dir {
        RunFolder::check(folder, "--output-dir", args.overwrite)?;
    }
    let started = Instant::now();
    let config = config(&args);
    let gpu = engine::gpu(&args.gpu)?;
    let inputs = Inputs::new(assets::model(), assets::NEGATIVES);
    let Prepared { setup, tokenizer, .. } = inputs.prepare(&gpu, &config)?;
    let tokenizer = &tokenizer;
    let held_out = HeldOut::read(tokenizer)?;
    engine::announce(&gpu, assets::NAME, None, &setup.decoder, output);
    let measure = |gpu: &Gpu, decoder: &Decoder, pass: Pass, what| {
        let mut progress = output.progress(what, held_out.len() as u64, Unit::Items);
        let mut advance = |items: usize, tokens: usize| {
            progress.advance(items as u64, tokens as u64);
            interrupt::check()
        };
        let measured = block_on(held_out.measure(gpu, decoder, pass, tokenizer, args.seed, &mut advance))?;
        progress.finish();
        Ok::<_, Error>(measured)
    };
    let before = measure(&gpu, &setup.decoder, setup.decoder.base(), "measuring before")?;
    let create = |path: &PathBuf| RunFolder::create(path, "--output-dir", args.overwrite);
    let folder = args.output_dir.as_ref().map(create).transpose()?;
    let mut recorder = match &folder {
        None => Recorder::silent(output, tokenizer).saving(Saver::new(output, None, &config)),
        Some(made) => {
            // What is built in becomes a file, so that `align --config` can repeat the run.
            write_whole(&made.path().join(TRAIN_COPY), assets::NEGATIVES.1)?;
            let mut config = config.clone();
            config.data.train = made.path().join(TRAIN_COPY);
            write_whole(&made.path().join("config.toml"), config.to_toml()?.as_bytes())?;
            let disk = Disk::new(made, None, origin(&config, &inputs, &gpu), &config);
            Recorder::into_folder(output, tokenizer, made.path(), (1, true), None)?.saving(Saver::new(
                output,
                Some(disk),
                &config,
            ))
        }
    };
    let again = |gpu: &Gpu| Ok(inputs.prepare(gpu, &config)?.setup);
    let start = engine::Start { gpu, options: args.gpu.options(), setup, state: None };
    let trained = engine::trained(start, &config, &mut recorder, &again)?;
    let engine::Trained { gpu, outcome, .. } = &trained;
    drop(recorder);
    let after = measure(gpu, &outcome.decoder, outcome.decoder.policy(), "measuring after")?;
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
    if let Some(folder) = &folder {
        engine::write_result(folder.path(), &Model::tiny(), &trained)?;
        let summary = serde_json::to_vec_pretty(&figures).unwrap_or_default();
        write_whole(&folder.path().join("summary.json"), &summary)?;
        folder.keep();
        checkpoint::remove_all(folder.path())?;
    }
    output.result(report(&held_out, &figures, started), &figures)
}

/// The table, and three answers side by side.
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
    // Prompts whose answer was hostile show best what changed.
    let hostile = (0..held_out.len()).filter(|&i| held_out.judge(i, &before.answers[i]).hostile);
    for i in hostile.take(3) {
        text += &format!(
            "\n\n  customer  {}\n  before    {}\n  after     {}",
            held_out.prompts[i], before.answers[i], after.answers[i]
        );
    }
    text + &format!(
        "\n\n{} steps ({}), the state of step {} kept; {} in all, {} of GPU memory at the most",
        figures.steps,
        figures.reason,
        figures.kept_step,
        seconds(started.elapsed()),
        bytes(figures.memory_peak_bytes),
    )
}
