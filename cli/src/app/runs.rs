//! Runs of the app: their settings, plans, starts and results.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::live::{Live, Stage, Watch};
use super::workspace::{Project, create};
use crate::commands::align;
use crate::commands::plan::binding;
use crate::open;
use crate::report_page::{Run, drawn, told, told_eval};
use aweigh::config::{GpuFlags, Layer, PartialConfig, Preset, RunConfig};
use aweigh::error::{Error, Result};
use aweigh::files::{RunFolder, Source, read_text, write_whole};
use aweigh::run::{self, Material, Place, Planned, RunFiles, Saving, savings};
use aweigh::tiny;

/// The settings of a run, as the page gives them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// `--preset`
    pub preset: Option<Preset>,
    /// `--max-steps`
    pub max_steps: Option<usize>,
    /// `--unwanted`; empty for none.
    pub unwanted: String,
    /// Other settings, as a file for `--config`.
    pub more: String,
    /// Whether the model that answers stays on the GPU during the run.
    pub keep_chat: bool,
}

/// What a run would take.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// Peak of GPU memory, in bytes.
    peak: u64,
    /// Settings that were changed to fit.
    fitted: Vec<String>,
    /// Settings that would need less.
    savings: Vec<Saving>,
    /// Flags to train on.
    train: usize,
    /// Flags that are held out.
    held_out: usize,
    /// What is odd about the flags or the settings.
    remarks: Vec<String>,
    /// All settings, as a run's config.toml.
    settings: String,
}

/// The learning rate that moves the built-in model, which is much smaller than others.
const TINY_RATE: f64 = 1e-3;
/// Flagged answers that a run of a habit trains on, each as often as that takes: 20 steps of 4, with which
/// habits of SmolLM2 became rare (docs/figures.md). Flags are few: more than `MOST_EPOCHS` times is no help.
const TRAINED_ON: f64 = 80.0;
const MOST_EPOCHS: f64 = 4.0;

/// Names of settings that the app sets itself.
const OWN: [&str; 4] = ["model.model", "data.train", "data.eval", "output.output_dir"];

/// The settings of run `id` of `project`, whose flags are written for it.
fn prepared(app: &App, project: &Project, id: u32, wanted: &Wanted) -> Result<RunConfig> {
    let (train, held_out) = {
        let flags = project.flags();
        if flags.all().is_empty() {
            let fix = "chat with the model, and flag the answers that you do not want";
            return Err(Error::input("flags", "at least one", "none", fix));
        }
        flags.split()
    };
    let more = Layer::from_toml(&wanted.more, "settings")?;
    if let Some(own) = OWN.into_iter().find(|own| more.has(own)) {
        let fix = "remove it: the app sets it";
        return Err(Error::input(format!("settings: {own}"), "none", "one", fix));
    }
    let [of_train, of_held_out] = project.data(id);
    create(&project.folder.join("data"))?;
    write_whole(&of_train, train.as_bytes())?;
    let mut below = PartialConfig { gpu: gpu_flags(app), ..PartialConfig::default() };
    if project.model == tiny::NAME {
        below.train.learning_rate = Some(TINY_RATE);
        below.anchors.max_new_tokens = Some(tiny::MAX_NEW_TOKENS);
    }
    if wanted.preset.is_none() {
        let epochs = TRAINED_ON / train.lines().count().max(1) as f64;
        below.train.num_train_epochs = Some(epochs.clamp(1.0, MOST_EPOCHS).round());
    }
    let mut page = PartialConfig::default();
    page.train.max_steps = wanted.max_steps;
    if !wanted.unwanted.trim().is_empty() {
        let rule = wanted.unwanted.trim().parse().map_err(|error| {
            let fix = "write match: and words, as in match:as an ai|i cannot";
            Error::input("the unwanted habit", "a rule", error, fix)
        })?;
        page.stop.unwanted = Some(rule);
    }
    let mut own = PartialConfig::default();
    own.model.model = Some(project.model.clone());
    own.data.train = Some(of_train);
    own.data.eval = held_out.as_ref().map(|_| of_held_out.clone());
    own.output.output_dir = Some(project.run(id));
    if let Some(held_out) = held_out {
        write_whole(&of_held_out, held_out.as_bytes())?;
    }
    let mut layers = vec![Layer::from_flags(below)];
    layers.extend(wanted.preset.map(Preset::layer));
    layers.extend([Layer::from_flags(page), more, Layer::from_flags(own)]);
    let config = RunConfig::resolve(layers)?;
    if !config.lora.enabled {
        let fix = "leave it out, or run `aweigh align` with these flags";
        return Err(Error::input("settings: lora.enabled", "true: the app keeps adapters", "false", fix));
    }
    Ok(config)
}

/// The GPU that the app was started with, as settings of a run.
fn gpu_flags(app: &App) -> GpuFlags {
    let gpu = &app.settings.gpu;
    GpuFlags {
        adapter: gpu.gpu.clone(),
        backend: gpu.backend,
        precision: Some(gpu.precision),
        tuning: Some(!gpu.no_tuning),
        ..GpuFlags::default()
    }
}

/// The number under which a plan's flags are written.
const NO_RUN: u32 = 0;

/// What a run with the settings `wanted` would take.
///
/// # Errors
/// Flags or settings that a run would refuse.
pub fn plan(app: &App, project: &Project, wanted: &Wanted) -> Result<Plan> {
    let config = prepared(app, project, NO_RUN, wanted)?;
    let model = open::model(&project.model, false, &app.settings.output)?;
    let files = RunFiles::with(&config, Source::read(&config.data.train, "flags")?, model)?;
    let job = files.job(&config)?;
    let binding = binding(&config)?;
    let mut remarks = files.remarks();
    remarks.extend(config.warnings());
    remarks.extend(job.remarks().iter().cloned());
    let Planned { config, plan, fitted } = Planned::of(&job, config, binding)?;
    let rows = |path: &Path| read_text(path, "flags").map_or(0, |text| text.lines().count());
    Ok(Plan {
        peak: plan.peak().total,
        savings: savings(&job, &config, &plan, binding)?,
        fitted,
        train: rows(&config.data.train),
        held_out: config.data.eval.as_deref().map_or(0, rows),
        remarks,
        settings: config.to_toml()?,
    })
}

/// Starts a run, and returns its number.
///
/// # Errors
/// Flags or settings that a run refuses; another run that goes on.
pub fn start(app: &Arc<App>, project: &Arc<Project>, wanted: &Wanted) -> Result<u32> {
    let id = project.next_run();
    let config = prepared(app, project, id, wanted)?;
    create(&project.folder.join("runs"))?;
    begin(app, project, id, (config, Place::New { overwrite: false }), wanted.keep_chat)?;
    Ok(id)
}

/// Resumes a run from its last checkpoint.
///
/// # Errors
/// A run that has ended or has no checkpoint; another run that goes on.
pub fn resume(app: &Arc<App>, project: &Arc<Project>, id: u32, keep_chat: bool) -> Result<()> {
    let folder = RunFolder::resume(&project.run(id), "the run")?;
    let flags = PartialConfig { gpu: gpu_flags(app), ..PartialConfig::default() };
    let config = align::settings_of(&project.run(id), flags)?;
    begin(app, project, id, (config, Place::Resume(folder)), keep_chat)
}

fn begin(
    app: &Arc<App>,
    project: &Arc<Project>,
    id: u32,
    (config, place): (RunConfig, Place),
    keep_chat: bool,
) -> Result<()> {
    let live = Live::new(id);
    app.claim(live.clone())?;
    let (own, project) = (app.clone(), project.clone());
    let watched = live.clone();
    let body = move || {
        if !keep_chat {
            own.current.close(Some("a run uses the GPU; the model answers again when it has ended".into()));
        }
        let work = || work(&own, &project, (config, place), &live);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
            Err(Error::Internal { doing: "aligning", message: "the run's thread panicked".into() })
        });
        if !keep_chat {
            own.current.open(project.clone());
        } else if ended.is_ok() {
            own.current.add_run(&project, id);
        }
        live.ended(&ended);
    };
    let thread = std::thread::Builder::new().name("run".into()).spawn(body);
    let thread = thread.map_err(|error| {
        let error = Error::io("the run's thread", "start", error);
        watched.ended(&Err(Error::Interrupted));
        error
    })?;
    app.keep_thread(thread);
    Ok(())
}

fn work(app: &App, project: &Project, (config, place): (RunConfig, Place), live: &Arc<Live>) -> Result<()> {
    let model = open::model(&project.model, true, &app.settings.output)?;
    let tokenizer = model.bytes().tokenizer()?;
    let train = Source::read(&config.data.train, "flags")?;
    let files = RunFiles::with(&config, train, model)?;
    run::run(&files, config, place, &mut Watch::new(live.clone(), tokenizer)).map(drop)
}

/// How far run `id` is.
pub fn stage(app: &App, project: &Project, id: u32) -> Stage {
    let folder = project.run(id);
    match app.live() {
        Some(live) if live.view().id == id => live.view().stage,
        _ if folder.join("summary.json").is_file() => Stage::Finished,
        _ if folder.join("config.toml").is_file() => Stage::Paused,
        _ => Stage::Failed,
    }
}

/// All runs, the last one first.
pub fn list(app: &App, project: &Project) -> Vec<Value> {
    let one = |id: u32| {
        let summary = summary(project, id);
        json!({
            "id": id, "stage": stage(app, project, id), "steps": summary["steps"],
            "kept_step": summary["kept_step"], "finished": summary["finished"],
        })
    };
    project.runs().into_iter().rev().map(one).collect()
}

fn summary(project: &Project, id: u32) -> Value {
    let bytes = fs::read(project.run(id).join("summary.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// The files of run `id`.
///
/// # Errors
/// A run that is not there, or whose files are damaged.
pub fn read(project: &Project, id: u32) -> Result<Run> {
    Ok(Run { name: format!("run {id}"), ..Run::read(&project.run(id))? })
}

/// The comparison of run `id`, as `aweigh eval --output` writes it; `None` if there is none.
pub fn comparison(project: &Project, id: u32) -> Option<Value> {
    serde_json::from_slice(&fs::read(project.comparison(id)).ok()?).ok()
}

/// What the page shows of run `id`.
///
/// # Errors
/// As [`read`].
pub fn details(app: &App, project: &Project, id: u32) -> Result<Value> {
    let stage = stage(app, project, id);
    let view = app.live().map(|live| live.view()).filter(|view| view.id == id);
    let run = match read(project, id) {
        Ok(run) => run,
        // It has written nothing yet.
        Err(_) if view.is_some() => Run::default(),
        Err(error) => return Err(error),
    };
    let rows = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let [train, held_out] = project.data(id).map(|path| rows(&path));
    Ok(json!({
        "id": id, "stage": stage, "live": view, "train": train, "held_out": held_out,
        "summary": run.summary, "charts": drawn(std::slice::from_ref(&run)), "told": told(&run),
        "settings": run.config, "comparison": comparison(project, id).as_ref().map(told_eval),
        "folder": project.run(id),
    }))
}

/// Removes run `id` and what was made from it.
///
/// # Errors
/// A run that goes on, [`Error::Io`].
pub fn remove(app: &App, project: &Project, id: u32) -> Result<()> {
    if app.live().is_some_and(|live| live.goes_on() && live.view().id == id) {
        return Err(Error::input("the run", "one that has ended", "one that goes on", "pause it first"));
    }
    app.current.drop_run(id);
    let folder = project.run(id);
    fs::remove_dir_all(&folder).map_err(|error| Error::io(&folder, "remove", error))?;
    let _ = fs::remove_dir_all(project.exports(id));
    let _ = fs::remove_file(project.comparison(id));
    project.data(id).iter().for_each(|path| drop(fs::remove_file(path)));
    Ok(())
}
