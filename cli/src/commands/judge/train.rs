//! `aweigh judge train`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Measured, both_classes, judged, measured};
use crate::args::{GpuArgs, at_least_one};
use crate::commands::align::settings_of;
use crate::open;
use crate::terminal::output::Output;
use crate::watch::Watch;
use aweigh::config::{PartialConfig, RunConfig};
use aweigh::data::{Example, Row, check_splits};
use aweigh::error::{Error, Result};
use aweigh::eval::judge::{Case, cases, examples};
use aweigh::files::{Model, RunFolder, Source, read, write_whole};
use aweigh::gpu::Gpu;
use aweigh::loss::Method;
use aweigh::model::{Decoder, ModelBytes, TargetModules};
use aweigh::optim::LrScheduler;
use aweigh::run::{self, Material, Place};
use aweigh::train::{Inputs, Job, Metrics, StopReason};
use aweigh_app::meters::judge::{ARGS, JUDGE, Judge};

/// Train a judge.
///
/// Rows have "completion" and "label" (false = flagged), or "chosen" and "rejected". The judge reads prompt
/// and answer as the model's chat template renders them. The result is an adapter with a classification head
/// in PEFT's format (task type SEQ_CLS), or with --full a model that transformers loads as
/// AutoModelForSequenceClassification; class 1 is "flagged".
#[derive(Clone, Debug, Serialize, Deserialize, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    /// The judge's base model: a directory, a GGUF file, a name on the Hugging Face Hub, or "tiny"
    #[arg(
        long,
        value_name = "DIR|GGUF|NAME|tiny",
        help_heading = "Model",
        required_unless_present = "resume"
    )]
    pub model: Option<String>,
    /// Train all weights instead of an adapter; writes model/ instead of adapter/
    #[arg(long, help_heading = "Model")]
    pub full: bool,
    /// Rank of the adapter
    #[arg(long, value_name = "RANK", default_value_t = 16, help_heading = "Model")]
    pub r: usize,
    /// Labelled answers: JSONL (may be gzipped)
    #[arg(long, value_name = "FILE", help_heading = "Data", required_unless_present = "resume")]
    pub train: Option<PathBuf>,
    /// Use only rows of --train whose "split" field is NAME
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub split: Option<String>,
    /// Held-out answers; without it or --eval-split, the last tenth of the training rows
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub eval: Option<PathBuf>,
    /// Use only rows of --eval (without --eval: of --train) whose "split" field is NAME
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub eval_split: Option<String>,
    /// Use only the first N training rows
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_samples: Option<usize>,
    /// Use only the first N held-out rows
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_eval_samples: Option<usize>,
    /// Maximum length of prompt and answer together; of longer ones only the last tokens are read
    #[arg(long, value_name = "TOKENS", default_value_t = 512, help_heading = "Data")]
    pub max_length: usize,
    /// Peak learning rate of AdamW, with a warm-up over the first tenth of the steps and linear decay to 0.
    /// The inputs of the head are large: a rate that is too high makes training unstable
    #[arg(long, value_name = "X", default_value_t = 1e-4, help_heading = "Training")]
    pub learning_rate: f64,
    /// Answers per optimizer step
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Training")]
    pub per_device_train_batch_size: usize,
    /// Number of epochs
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Training")]
    pub num_train_epochs: f64,
    /// Number of optimizer steps; overrides --num-train-epochs
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub max_steps: Option<usize>,
    /// Steps between evaluations of the held-out loss; the best state is kept
    #[arg(long, value_name = "STEPS", default_value_t = 20, help_heading = "Training")]
    pub eval_steps: usize,
    /// Random seed for the order of the data and the adapter's initial weights
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Training")]
    pub seed: u32,
    /// Folder for the judge
    #[arg(long, value_name = "DIR", help_heading = "Output", required_unless_present = "resume")]
    pub output_dir: Option<PathBuf>,
    /// Replace an earlier run in --output-dir
    #[arg(long, help_heading = "Output")]
    #[serde(skip)]
    pub overwrite: bool,
    /// Resume the judge in this folder from its last checkpoint, with its original settings. Only GPU flags
    /// can be combined with it
    #[arg(long, value_name = "JUDGE", help_heading = "Output")]
    #[arg(conflicts_with_all = [
        "model", "full", "r", "train", "split", "eval", "eval_split", "max_samples", "max_eval_samples",
        "max_length", "learning_rate", "per_device_train_batch_size", "num_train_epochs", "max_steps",
        "eval_steps", "seed", "output_dir", "overwrite",
    ])]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// The GPU.
    #[command(flatten)]
    #[serde(skip)]
    pub gpu: GpuArgs,
}

/// Written at the end of every run.
const SUMMARY: &str = "summary.json";

const EXAMPLES: &str = "\
Examples:
  aweigh judge train --model DIR --train labelled.jsonl --output-dir judge
  aweigh judge train --resume judge                       # after Ctrl-C, a crash, a power cut
  aweigh judge score --judge judge --data answers.jsonl --output scored.jsonl
  aweigh eval --model DIR --data prompts.jsonl --meter judge:judge base run";

/// Maximum number of held-out answers that are scored during training.
const WATCHED: usize = 64;

/// The content of `judge.json`, and the figures of `--json`.
#[derive(Debug, Serialize)]
struct Trained {
    model: String,
    #[serde(flatten)]
    ended: Ended,
    train_answers: usize,
    /// Maximum tokens of prompt and answer that the judge reads; of a longer text it reads the last ones.
    max_length: usize,
    held_out: Measured,
}

/// What judge.json takes from summary.json.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    reason: StopReason,
    steps: usize,
    kept_step: usize,
    before: Option<Metrics>,
    after: Option<Metrics>,
}

fn config(args: &TrainArgs) -> RunConfig {
    let mut config = RunConfig::default();
    config.model.model = args.model.clone().unwrap_or_default();
    config.data.train = args.train.clone().unwrap_or_default();
    config.method.method = Method::Sft;
    config.lora.enabled = !args.full;
    config.lora.r = args.r;
    config.lora.target_modules = TargetModules::AllLinear;
    config.lora.lora_alpha = 2.0 * args.r as f64;
    config.train.learning_rate = Some(args.learning_rate);
    config.train.lr_scheduler_type = LrScheduler::Linear;
    config.train.warmup_ratio = Some(0.1);
    config.train.per_device_train_batch_size = args.per_device_train_batch_size;
    config.train.num_train_epochs = args.num_train_epochs;
    config.train.max_steps = args.max_steps;
    config.train.seed = args.seed;
    config.stop.eval_steps = args.eval_steps;
    // With two classes, e^loss starts near 2: if it rises by half, the judge is wrong with high confidence.
    config.stop.max_perplexity_rise = 0.5;
    config.output.output_dir = args.output_dir.clone().unwrap_or_default();
    // A judge generates no answers.
    config.output.num_completions = 0;
    config.output.save_samples = false;
    set_gpu(&mut config, &args.gpu);
    config
}

fn set_gpu(config: &mut RunConfig, gpu: &GpuArgs) {
    config.gpu.adapter = gpu.gpu.clone();
    config.gpu.tuning = !gpu.no_tuning;
    config.gpu.precision = gpu.precision;
}

fn check(args: &TrainArgs) -> Result<()> {
    at_least_one("--r", args.r)?;
    at_least_one("--max-length", args.max_length)?;
    at_least_one("--per-device-train-batch-size", args.per_device_train_batch_size)?;
    at_least_one("--eval-steps", args.eval_steps)?;
    for (flag, most) in [
        ("--max-steps", args.max_steps),
        ("--max-samples", args.max_samples),
        ("--max-eval-samples", args.max_eval_samples),
    ] {
        at_least_one(flag, most.unwrap_or(1))?;
    }
    check_splits(args.split.as_deref(), args.eval_split.as_deref().filter(|_| args.eval.is_none()))?;
    for (flag, value) in
        [("--learning-rate", args.learning_rate), ("--num-train-epochs", args.num_train_epochs)]
    {
        if !(value.is_finite() && value > 0.0) {
            return Err(Error::input(flag, "a number above 0", value, "give a number above 0"));
        }
    }
    let folder = args.output_dir.clone().unwrap_or_default();
    RunFolder::check(&folder, "--output-dir", args.overwrite)
}

/// The model and the data that a judge is trained from.
struct Labelled {
    model: Model,
    source: Source,
    held_out: Option<Source>,
    train: Vec<Case>,
    eval: Vec<Case>,
    /// Held-out answers that are scored during training.
    watched: Vec<Example>,
    /// Maximum tokens of prompt and answer that are read.
    max_length: usize,
}

impl Labelled {
    fn read(args: &TrainArgs, output: &Output) -> Result<Self> {
        let train = args.train.as_deref().unwrap_or(Path::new(""));
        let source = Source::read(train, "--train")?;
        let held_out = args.eval.as_deref().map(|path| Source::read(path, "--eval")).transpose()?;
        let model = open::model(args.model.as_deref().unwrap_or_default(), true, output)?;
        let bytes = ModelBytes { judge: true, ..model.bytes() };
        let tokenizer = bytes.tokenizer()?;
        let mut rows = open::rows(&source, args.split.as_deref(), None, output)?;
        let eval_source = held_out.as_ref().unwrap_or(&source);
        let mut eval_rows = match (&held_out, &args.eval_split) {
            (None, None) => {
                rows.truncate(args.max_samples.unwrap_or(usize::MAX));
                if rows.len() < 10 {
                    let (expected, found) =
                        ("at least 10 rows, to hold a tenth out", format!("{} rows", rows.len()));
                    return Err(Error::input(&source.origin, expected, found, "add --eval FILE"));
                }
                rows.split_off(rows.len() - rows.len() / 10)
            }
            _ => open::rows(eval_source, args.eval_split.as_deref(), None, output)?,
        };
        rows.truncate(args.max_samples.unwrap_or(usize::MAX));
        eval_rows.truncate(args.max_eval_samples.unwrap_or(usize::MAX));
        let max_length = args.max_length.min(bytes.decoder_config()?.context() - 1);
        let of = |rows: &[Row], origin: &str| cases(rows, origin, &tokenizer, max_length);
        let (train, eval) = (of(&rows, &source.origin)?, of(&eval_rows, &eval_source.origin)?);
        both_classes(&train, &source.origin)?;
        both_classes(&eval, &format!("{} (held out)", eval_source.origin))?;
        // Up to half of each class, spread evenly over the file, as files are often sorted.
        let spread = |flagged: bool| {
            let own: Vec<Case> = eval.iter().filter(|case| case.flagged == Some(flagged)).cloned().collect();
            examples(&own).into_iter().step_by(own.len().div_ceil(WATCHED / 2).max(1))
        };
        let watched = spread(false).chain(spread(true)).collect();
        Ok(Self { model, source, held_out, train, eval, watched, max_length })
    }
}

impl Material for Labelled {
    fn model(&self) -> &Model {
        &self.model
    }

    fn inputs(&self) -> Inputs<'_> {
        let bytes = ModelBytes { judge: true, ..self.model.bytes() };
        let eval = self.held_out.as_ref().map(|source| (source.origin.as_str(), source.bytes.as_slice()));
        Inputs { eval, ..Inputs::new(bytes, (&self.source.origin, &self.source.bytes)) }
    }

    fn job(&self, config: &RunConfig) -> Result<Job<'_>> {
        self.inputs().given(config, examples(&self.train), self.watched.clone())
    }
}

pub(super) fn train(args: &TrainArgs, output: &Output) -> Result<()> {
    let Some(folder) = &args.resume else {
        check(args)?;
        let place = Place::New { overwrite: args.overwrite };
        return trained(args, config(args), place, output);
    };
    let path = folder.join(ARGS);
    let begun = || -> Result<TrainArgs> {
        let begun: TrainArgs = serde_json::from_slice(&read(&path, "--resume")?).map_err(|error| {
            Error::input(path.display(), "a judge's flags as JSON", error, "train the judge again")
        })?;
        Ok(TrainArgs { output_dir: Some(folder.clone()), ..begun })
    };
    let summary = folder.join(SUMMARY);
    if summary.is_file() && !folder.join(JUDGE).exists() && path.is_file() {
        // The run was over, but the judge had not been measured.
        let _lock = RunFolder::reopen_finished(folder, "--resume")?;
        let begun = begun()?;
        let labelled = Labelled::read(&begun, output)?;
        let gpu = open::gpu(&args.gpu)?;
        let decoder = Judge::open(folder, begun.model.as_deref(), "--resume", output)?.decoder(&gpu)?;
        let ended = serde_json::from_slice(&read(&summary, "--resume")?).map_err(|error| {
            Error::input(summary.display(), "a run's summary as JSON", error, "train the judge again")
        })?;
        return measure(&begun, &labelled, (&gpu, &decoder), ended, output);
    }
    let place = Place::Resume(RunFolder::resume(folder, "--resume")?);
    let mut config = settings_of(folder, PartialConfig::default())?;
    set_gpu(&mut config, &args.gpu);
    trained(&begun()?, config, place, output)
}

fn trained(args: &TrainArgs, config: RunConfig, place: Place, output: &Output) -> Result<()> {
    let labelled = Labelled::read(args, output)?;
    let begun = serde_json::to_vec_pretty(args).unwrap_or_default();
    let watch = Watch::new(output, "aweigh judge train --resume").with_file(ARGS, begun);
    let finished = watch.over(|watch| run::run(&labelled, config, place, watch))?;
    let outcome = &finished.outcome;
    let ended = Ended {
        reason: outcome.reason,
        steps: outcome.steps,
        kept_step: outcome.kept_step,
        before: outcome.before.clone(),
        after: outcome.after.clone(),
    };
    measure(args, &labelled, (&finished.gpu, &outcome.decoder), ended, output)
}

/// Scores the held-out answers with the trained judge, and writes judge.json.
fn measure(
    args: &TrainArgs,
    labelled: &Labelled,
    (gpu, decoder): (&Gpu, &Decoder),
    ended: Ended,
    output: &Output,
) -> Result<()> {
    let eval: Vec<Case> = labelled.eval.iter().filter(|case| case.flagged.is_some()).cloned().collect();
    let found = judged(gpu, decoder, &eval, output)?;
    let trained = Trained {
        model: args.model.clone().unwrap_or_default(),
        ended,
        train_answers: labelled.train.len(),
        max_length: labelled.max_length,
        held_out: measured(&eval, &found),
    };
    let folder = args.output_dir.clone().unwrap_or_default();
    let json = serde_json::to_vec_pretty(&trained).unwrap_or_default();
    write_whole(&folder.join(JUDGE), &json)?;
    let text = format!(
        "{}\n{} training answers, {} steps ({}), kept the state of step {}; the judge is in {}",
        trained.held_out.table(),
        trained.train_answers,
        trained.ended.steps,
        trained.ended.reason,
        trained.ended.kept_step,
        folder.display()
    );
    output.result(text, &trained)
}
