//! `aweigh align`: a run from its settings to its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::commands::plan::{self, Planned};
use crate::engine;
use crate::record::Recorder;
use crate::saver::{Disk, Saver, origin, settings_sum};
use crate::terminal::output::{Output, bytes, count, table};
use crate::terminal::progress::seconds;
use aweigh::config::{Layer, PartialConfig, ReferenceSource, RunConfig};
use aweigh::data::{LengthCounts, clock};
use aweigh::error::{Error, Result};
use aweigh::files::checkpoint::{self, Origin};
use aweigh::files::{self, AdapterFiles, Model, ModelFiles, RunFolder, Source, write_whole};
use aweigh::gpu::{Gpu, Options, Purpose};
use aweigh::train::{AnchorCounts, Checkpoint, Inputs, Job, Metrics, Outcome, State, StopReason};

/// Align a model: sample anchors, train, stop in time, write an adapter.
///
/// Settings come from --config and from flags; a flag wins over the file. A file has the flags' names with
/// underscores, in sections: model, data, method, anchors, reference, lora, train, stop, output, gpu. Every
/// run writes its complete settings to config.toml in its folder.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, next_help_heading = "Run")]
pub struct Args {
    /// Settings in TOML; flags win over it. Relative paths in it start at the current folder
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Replace an earlier run in --output-dir. A folder that holds anything else is still refused
    #[arg(long)]
    pub overwrite: bool,
    /// Go on with the run in this folder from its last checkpoint, with the settings that it was begun with:
    /// the result is the same, to the bit where the GPU and its driver are. Only flags of the GPU may stand
    /// beside it
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "overwrite"])]
    pub resume: Option<PathBuf>,
    /// All the settings.
    #[command(flatten)]
    pub settings: PartialConfig,
}

const EXAMPLES: &str = "\
Examples:
  aweigh align --model SmolLM2-135M-Instruct --train flagged.jsonl --output-dir run
  aweigh align --config run.toml --learning-rate 1e-5 --output-dir run2
  aweigh align --config run.toml --samples-file run/samples.jsonl --output-dir run3   # the same anchors again
  aweigh align --resume run                                     # after Ctrl-C, a crash, a power cut

A file for --config:
  [model]
  model = \"SmolLM2-135M-Instruct\"
  [data]
  train = \"flagged.jsonl\"
  [train]
  learning_rate = 3e-5
  [output]
  output_dir = \"run\"

What to watch: rewards/anchor and rewards/negative in metrics.jsonl. The second should fall; a first that
falls with it is a model that breaks, and the stop rule ends such a run.";

/// A run's settings, from the file and the flags, over those `below`.
///
/// # Errors
/// [`aweigh::Error::Input`] for the first setting that is wrong, with its place.
pub fn settings(below: PartialConfig, file: Option<&Path>, flags: PartialConfig) -> Result<RunConfig> {
    let mut layers = vec![Layer::from_flags(below)];
    if let Some(path) = file {
        layers.push(Layer::from_toml(&files::read_text(path, "--config")?, &path.display().to_string())?);
    }
    layers.push(Layer::from_flags(flags));
    RunConfig::resolve(layers)
}

/// The settings of the run in `folder`, to go on with it.
fn settings_of(folder: &Path, flags: PartialConfig) -> Result<RunConfig> {
    let other: Vec<String> = flags.given().into_iter().filter(|key| !key.starts_with("gpu.")).collect();
    if !other.is_empty() {
        let flags: Vec<String> = other.iter().map(|key| PartialConfig::flag(key)).collect();
        let fix = "leave them out, or begin a new run with --config";
        let expected = "no other settings: a run goes on as it was begun";
        return Err(Error::input("--resume", expected, flags.join(", "), fix));
    }
    let mut config = settings(PartialConfig::default(), Some(&folder.join("config.toml")), flags)?;
    config.output.output_dir = folder.into();
    Ok(config)
}

/// The last whole checkpoint in `folder`; fails where the run was begun from something else than `own`.
fn last_state(folder: &Path, own: &Origin, output: &Output) -> Result<Option<State>> {
    let Some(found) = checkpoint::latest(folder, &mut |text| output.warn(text))? else {
        output.note("no checkpoint yet: the run begins again");
        return Ok(None);
    };
    let fix = "bring back what the run was begun with, or begin a new one";
    let differs = |place: String, then: &str, now: &str| Err(Error::input(place, then, now, fix));
    if found.origin.settings != own.settings {
        let place = folder.join("config.toml").display().to_string();
        return differs(place, "the settings that the run was begun with", "others");
    }
    for (flag, then) in &found.origin.inputs {
        let now = own.inputs.get(flag).map_or("nothing", String::as_str);
        if now != then {
            return differs(format!("{flag}, as the run was begun"), then, now);
        }
    }
    if found.origin.adapter != own.adapter {
        output.warn(format_args!(
            "the run was on {} and goes on on {}: sums may be taken in another order, so figures may differ \
             in their last digits, and with them answers that are sampled from now on",
            found.origin.adapter, own.adapter
        ));
    }
    output.note(format_args!("going on {}", found.state.place()));
    Ok(Some(found.state))
}

/// Every file that a run reads, in memory before anything is written.
#[derive(Debug)]
pub struct Files {
    model: Model,
    adapter: Option<AdapterFiles>,
    train: Source,
    eval: Option<Source>,
    samples: Option<Source>,
    positive: Option<CheckpointFiles>,
    negative: Option<CheckpointFiles>,
}

/// A reference model from disk: of the kind that the run trains.
#[derive(Debug)]
enum CheckpointFiles {
    Adapter(AdapterFiles),
    Model(Model),
}

impl CheckpointFiles {
    fn bytes(&self) -> Checkpoint<'_> {
        match self {
            Self::Adapter(files) => Checkpoint::Adapter(files.bytes()),
            Self::Model(model) => Checkpoint::Model(Box::new(model.bytes())),
        }
    }
}

impl Files {
    /// Reads them all; the training rows are read already. `open` opens the model; warnings go to `output`.
    ///
    /// # Errors
    /// [`aweigh::Error::Input`] names the first that is missing, and the flag that asked for it.
    pub fn read(
        config: &RunConfig,
        train: Source,
        open: &dyn Fn(&str) -> Result<Model>,
        output: &Output,
    ) -> Result<Self> {
        let source =
            |path: &Option<PathBuf>, flag| path.as_deref().map(|path| Source::read(path, flag)).transpose();
        let adapter = config.model.adapter.as_deref();
        let model = open(&config.model.model)?.with_chat_template(config.model.chat_template.as_deref())?;
        Ok(Self {
            train,
            eval: source(&config.data.eval, "--eval")?,
            samples: source(&config.anchors.samples_file, "--samples-file")?,
            adapter: adapter.map(|path| engine::adapter(path, "--adapter", &model, output)).transpose()?,
            positive: checkpoint(config, &config.reference.positive, "--reference-positive", &model, output)?,
            negative: checkpoint(config, &config.reference.negative, "--reference-negative", &model, output)?,
            model,
        })
    }

    /// As the library takes them.
    pub fn inputs(&self) -> Inputs<'_> {
        fn named(source: &Source) -> (&str, &[u8]) {
            (&source.origin, &source.bytes)
        }
        Inputs {
            adapter: self.adapter.as_ref().map(AdapterFiles::bytes),
            eval: self.eval.as_ref().map(named),
            samples: self.samples.as_ref().map(named),
            positive: self.positive.as_ref().map(CheckpointFiles::bytes),
            negative: self.negative.as_ref().map(CheckpointFiles::bytes),
            ..Inputs::new(self.model.bytes(), named(&self.train))
        }
    }
}

impl Files {
    /// Fails where weights were written to since they were opened.
    ///
    /// # Errors
    /// [`aweigh::Error::Input`] names the file.
    fn check_unchanged(&self) -> Result<()> {
        self.model.check_unchanged()?;
        self.adapter.iter().try_for_each(AdapterFiles::check_unchanged)?;
        [&self.positive, &self.negative].into_iter().flatten().try_for_each(|checkpoint| match checkpoint {
            CheckpointFiles::Adapter(files) => files.check_unchanged(),
            CheckpointFiles::Model(files) => files.check_unchanged(),
        })
    }
}

fn checkpoint(
    config: &RunConfig,
    source: &ReferenceSource,
    flag: &str,
    model: &Model,
    output: &Output,
) -> Result<Option<CheckpointFiles>> {
    let ReferenceSource::Checkpoint(path) = source else { return Ok(None) };
    Ok(Some(if config.lora.enabled {
        CheckpointFiles::Adapter(engine::adapter(path, flag, model, output)?)
    } else {
        CheckpointFiles::Model(ModelFiles::open(path, flag)?.into())
    }))
}

/// Aligns a model.
///
/// # Errors
/// Whatever is wrong with the settings, the files or the GPU; the run's folder is then as it was, or holds
/// the last checkpoint.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let mut folder = args.resume.as_deref().map(|path| RunFolder::resume(path, "--resume")).transpose()?;
    let mut config = match &args.resume {
        Some(folder) => settings_of(folder, args.settings.clone())?,
        None => settings(PartialConfig::default(), args.config.as_deref(), args.settings.clone())?,
    };
    if folder.is_none() {
        RunFolder::check(&config.output.output_dir, "--output-dir", args.overwrite)?;
    }
    let train = Source::read(&config.data.train, "--train")?;
    let files = Files::read(&config, train, &|name| engine::model(name, true, output), output)?;
    for warning in config.warnings() {
        output.warn(warning);
    }
    let submit_seconds = config.gpu.submit_budget.map(|ms| ms / 1000.0);
    let (adapter, precision) = (config.gpu.adapter.clone(), config.gpu.precision);
    let background = config.gpu.background;
    let witness = config.gpu.paranoid.then(engine::paranoid);
    let options = Options { adapter, precision, submit_seconds, background, witness, ..Options::default() };
    let started = Instant::now();
    let mut first = true;
    loop {
        let gpu = engine::open(&options, config.gpu.tuning)?;
        let binding = gpu.max_binding();
        let job = files.inputs().read(&config)?;
        if std::mem::take(&mut first) {
            job.remarks().iter().for_each(|remark| output.warn(remark));
        }
        let planned = plan::planned(&job, config.clone(), binding)?;
        output.note(plan::text(&planned.plan, &planned.fitted));
        let begin = Begin { args: &args, files: &files, output, options: options.clone(), started };
        match begin.run(gpu, job, &planned, &mut folder) {
            Err(error @ Error::OutOfMemory { held, bytes, .. }) => {
                let job = files.inputs().read(&planned.config)?;
                config = plan::smaller(&job, &planned, held + bytes, binding, output)?.ok_or(error)?;
                let same = settings_sum(&config) == settings_sum(&planned.config);
                if let Some(folder) = folder.as_ref().filter(|_| !same) {
                    output.warn("that changes results: the run begins again");
                    checkpoint::remove_all(folder.path())?;
                }
            }
            ended => return ended,
        }
    }
}

/// What does not change when a run is tried again with less memory.
struct Begin<'a> {
    args: &'a Args,
    files: &'a Files,
    output: &'a Output,
    options: Options,
    started: Instant,
}

impl Begin<'_> {
    /// The whole run. `folder` is made where it is not there.
    fn run(
        self,
        gpu: engine::OpenGpu,
        job: Job,
        planned: &Planned,
        folder: &mut Option<RunFolder>,
    ) -> Result<()> {
        let Self { args, files, output, options, started } = self;
        let (config, plan) = (&planned.config, &planned.plan);
        let path = &config.output.output_dir;
        let prepared = job.load(&gpu, config)?;
        files.check_unchanged()?;
        engine::announce(&gpu, files.model.bytes().name, None, &prepared.setup.decoder, output);
        prepared.tokenizer.remarks().iter().for_each(|remark| output.warn(remark));
        output.note(format_args!("{}: {}", files.train.origin, prepared.lengths));
        if config.method.method.is_of_negatives() && prepared.setup.train[0].prompt.is_conversational() {
            engine::note_of_system(&prepared.tokenizer, &config.anchors.safety_instruction, output);
        }
        if config.stop.enabled && prepared.setup.eval.is_empty() {
            output.warn(
                "nothing is held out of fewer than 10 examples, so the stop rule cannot watch: give --eval \
                 FILE",
            );
        }
        let origin = origin(config, &files.inputs(), &gpu);
        let state = match folder {
            Some(_) => last_state(path, &origin, output)?,
            None => None,
        };
        let folder = match folder {
            Some(folder) => folder,
            None => folder.insert(RunFolder::create(path, "--output-dir", args.overwrite)?),
        };
        let write = |name: &str, bytes: &[u8]| write_whole(&folder.path().join(name), bytes);
        if args.resume.is_none() || !planned.fitted.is_empty() {
            write("config.toml", config.to_toml()?.as_bytes())?;
        }
        let adapter_config = prepared.setup.decoder.adapter_config(files.model.bytes().name);
        let disk = Disk::new(folder, adapter_config, origin, config);
        let what = (config.output.logging_steps, config.output.save_samples);
        let from = state.as_ref().and_then(State::trained);
        let mut recorder = Recorder::into_folder(output, &prepared.tokenizer, folder.path(), what, from)?
            .saving(Saver::new(output, Some(disk), config));
        let again = |gpu: &Gpu| {
            let loaded = files.inputs().read(config)?.load(gpu, config)?;
            files.check_unchanged().map(|()| loaded.setup)
        };
        let start = engine::Start { gpu, options, setup: prepared.setup, state };
        let trained = match engine::trained(start, config, &mut recorder, &again) {
            Err(Error::Interrupted) if recorder.last_state().is_none() => {
                output.note(
                    "stopped before there was anything to keep: no prompt has all its anchors, and no step \
                     is done",
                );
                return Err(Error::Interrupted);
            }
            ended => ended?,
        };
        drop(recorder);
        if let Err(error) = files.check_unchanged() {
            output.warn(format_args!("{error}; the result belongs to the weights as they were"));
        }
        engine::write_result(folder.path(), &files.model, &trained)?;
        let engine::Trained { gpu, outcome, .. } = trained;
        if outcome.steps > 0 && outcome.kept_step == 0 {
            output.warn(
                "no step was better than the start on the held-out examples: the result is the model as it \
                 was",
            );
        }
        let summary = Summary::new(&gpu, &outcome, (prepared.lengths, plan.peak().total), started);
        let json = serde_json::to_vec_pretty(&summary).unwrap_or_default();
        write("summary.json", &json)?;
        folder.keep();
        checkpoint::remove_all(folder.path())?;
        output.result(summary.table(path), &summary)?;
        output.note(next_steps(config));
        Ok(())
    }
}

/// `summary.json`, and the figures of `--json`.
#[derive(Serialize)]
struct Summary {
    reason: StopReason,
    reason_text: String,
    steps: usize,
    kept_step: usize,
    before: Option<Metrics>,
    after: Option<Metrics>,
    anchors: AnchorCounts,
    examples: LengthCounts,
    num_tokens: usize,
    tokens_per_second: f64,
    seconds: f64,
    /// When it ended, in UTC.
    finished: Option<String>,
    adapter: String,
    trainable_parameters: usize,
    memory_planned: u64,
    memory_peak: u64,
    memory_peaks: BTreeMap<Purpose, u64>,
    /// What `--paranoid` compared.
    checks: Option<String>,
}

impl Summary {
    fn new(gpu: &Gpu, outcome: &Outcome, (examples, planned): (LengthCounts, u64), started: Instant) -> Self {
        let peaks = gpu.ledger().by_purpose().into_iter().map(|(purpose, usage)| (purpose, usage.peak));
        Self {
            reason: outcome.reason,
            reason_text: outcome.reason.to_string(),
            steps: outcome.steps,
            kept_step: outcome.kept_step,
            before: outcome.before.clone(),
            after: outcome.after.clone(),
            anchors: outcome.anchors,
            examples,
            num_tokens: outcome.num_tokens,
            tokens_per_second: outcome.num_tokens as f64 / outcome.train_seconds.max(1e-9),
            seconds: started.elapsed().as_secs_f64(),
            finished: clock::now().and_then(|now| clock::strftime("%Y-%m-%dT%H:%M:%SZ", now).ok()),
            adapter: gpu.summary().name.clone(),
            trainable_parameters: outcome.decoder.layout().count(),
            memory_planned: planned,
            memory_peak: gpu.ledger().total().peak,
            memory_peaks: peaks.collect(),
            checks: gpu.witness().map(|witness| witness.report()),
        }
    }

    fn table(&self, folder: &Path) -> String {
        let figures = |m: &Option<Metrics>| m.as_ref().map(|m| m.0.clone()).unwrap_or_default();
        let rows: Vec<Vec<String>> = figures(&self.before)
            .into_iter()
            .zip(figures(&self.after))
            .filter(|((name, _), _)| name != "global_step")
            .map(|((name, before), (_, after))| {
                vec![
                    name.trim_start_matches("eval_").to_string(),
                    format!("{before:.4}"),
                    format!("{after:.4}"),
                ]
            })
            .collect();
        let held_out = if rows.is_empty() {
            String::new()
        } else {
            table(&["held-out", "before", "after"], &rows) + "\n"
        };
        let a = &self.anchors;
        let anchors = match a.drawn {
            0 => String::new(),
            drawn => format!(
                "anchors: {drawn} drawn, {} repeated, {} empty, {} cut at the length limit\n",
                a.duplicates, a.empty, a.cut
            ),
        };
        let checks = self.checks.as_ref().map(|checks| format!("{checks}\n")).unwrap_or_default();
        format!(
            "{held_out}ended after step {}: {}; kept the state of step {}\n\
             {anchors}{} tokens trained on, {:.0} a second; {} in all, {} of GPU memory at the \
             most\n{checks}{} holds the result",
            self.steps,
            self.reason_text,
            self.kept_step,
            count(self.num_tokens),
            self.tokens_per_second,
            seconds(Duration::from_secs_f64(self.seconds)),
            bytes(self.memory_peak),
            folder.display(),
        )
    }
}

/// What to do with a run's result, as commands to paste.
fn next_steps(config: &RunConfig) -> String {
    let run = &config.output.output_dir;
    let base = quoted(&config.model.model);
    let template = config.model.chat_template.as_ref();
    let template =
        template.map(|path| format!(" --chat-template {}", quoted(path.display()))).unwrap_or_default();
    let model = match config.lora.enabled {
        true => format!("--model {base}{template} --adapter {}", quoted(run.join("adapter").display())),
        false => format!("--model {}", quoted(run.join("model").display())),
    };
    let held_out = config.data.eval.as_ref().map_or("HELD-OUT.jsonl".into(), |path| quoted(path.display()));
    let run = quoted(run.display());
    let rows = [
        (format!("aweigh generate {model}"), "talk to it"),
        (
            format!("aweigh eval base {run} --model {base} --data {held_out}"),
            "compare it with the model as it was",
        ),
        (format!("aweigh report {run}"), "see the run as a page"),
        (
            format!("aweigh export {model} --output MODEL"),
            "a plain model directory, or with an ending .gguf a file",
        ),
    ];
    let wide = rows.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let rows = rows.iter().map(|(command, what)| format!("\n  {command:<wide$}  # {what}"));
    format!("next:{}", rows.collect::<String>())
}

/// A word as a shell takes it.
fn quoted(word: impl std::fmt::Display) -> String {
    let word = word.to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c) || (cfg!(windows) && c == '\\');
    match word.chars().all(plain) && !word.is_empty() {
        true => word,
        false if cfg!(windows) => format!("\"{word}\""),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next_can_be_pasted() {
        let mut config = RunConfig::default();
        (config.model.model, config.output.output_dir) = ("owner/name".into(), "my run".into());
        let text = next_steps(&config);
        assert!(text.contains("aweigh generate --model owner/name --adapter 'my run/adapter'"), "{text}");
        assert!(
            text.contains("aweigh eval base 'my run' --model owner/name --data HELD-OUT.jsonl"),
            "{text}"
        );
        config.lora.enabled = false;
        assert!(next_steps(&config).contains("aweigh export --model 'my run/model' --output MODEL"));
    }
}
