//! Runs of the app: their settings, plans, starts and results.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::flags::{Flag, split};
use super::live::{Live, Stage, Watch};
use super::workspace::{Project, create};
use super::{Activity, App, guarded};
use crate::meters::anchors::with_meter;
use crate::open;
use crate::report_page::{Run, drawn, told, told_eval};
use crate::tasks::start as start_task;
use aweigh::config::{AnchorConfig, GpuFlags, Layer, PartialConfig, Preset, RunConfig};
use aweigh::error::{Error, Result};
use aweigh::files::{
    EVENTS, Model, RunFolder, Source, checkpoint, disk as fs, entries, read_text, write_whole,
};
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
    /// Optimizer steps, if the stop rule does not end it earlier.
    steps: usize,
    /// How long it would take, in seconds, if its steps took as long as those of the last run that has ended.
    seconds: Option<f64>,
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
/// Steps between the evaluations of its runs, which are short.
const TINY_EVAL_STEPS: usize = 4;
/// Flagged answers that a run of a habit trains on, each as often as that takes: 50 steps of 4, with which
/// habits of SmolLM2 became rare (docs/figures.md). Flags are few: more than `MOST_EPOCHS` times is no help.
const TRAINED_ON: f64 = 200.0;
const MOST_EPOCHS: f64 = 4.0;
/// The least for the length of anchors, in tokens.
const SHORTEST: usize = 16;

/// Minutes between the checkpoints of a run in a tab, which is closed more easily than a program.
const TAB_SAVE_MINUTES: f64 = 1.0;

/// Names of settings that the app sets itself.
const OWN: [&str; 4] = ["model.model", "data.train", "data.eval", "output.output_dir"];

/// The settings of run `id` of `project`, whose flags are written for it. `longest` are the tokens of the
/// longest flagged answer.
fn prepared(app: &App, project: &Project, (id, longest): (u32, usize), wanted: &Wanted) -> Result<RunConfig> {
    let flags = project.flags().all().to_vec();
    if flags.is_empty() {
        let fix = "chat with the model, and flag the answers that you do not want";
        return Err(Error::input("flags", "at least one", "none", fix));
    }
    let (train, held_out) = split(&flags);
    let more = Layer::from_toml(&wanted.more, "settings")?;
    if let Some(own) = OWN.into_iter().find(|own| more.has(own)) {
        let fix = "remove it: the app sets it";
        return Err(Error::input(format!("settings: {own}"), "none", "one", fix));
    }
    let [of_train, of_held_out] = project.data(id);
    let mut below = PartialConfig { gpu: gpu_flags(app), ..PartialConfig::default() };
    if wanted.preset.is_none() {
        let epochs = TRAINED_ON / train.lines().count().max(1) as f64;
        below.train.num_train_epochs = Some(epochs.clamp(1.0, MOST_EPOCHS).round());
        // Longer anchors than what is flagged would take time and say nothing more of the habit.
        let most = AnchorConfig::default().max_new_tokens;
        below.anchors.max_new_tokens = Some(longest.clamp(SHORTEST, most));
    }
    if project.model == tiny::NAME {
        below.train.learning_rate = Some(TINY_RATE);
        below.anchors.max_new_tokens = Some(tiny::MAX_NEW_TOKENS);
        // Without it a third of the anchors would be rude too.
        below.anchors.safety_instruction = Some(tiny::SAFETY_INSTRUCTION.into());
        below.stop.eval_steps = Some(TINY_EVAL_STEPS);
    }
    if cfg!(target_arch = "wasm32") {
        below.output.save_minutes = Some(TAB_SAVE_MINUTES);
    }
    let mut page = PartialConfig::default();
    page.train.max_steps = wanted.max_steps;
    // A preset has a rule of its own.
    page.stop.unwanted = project.flags().rule().filter(|_| wanted.preset.is_none());
    let mut own = PartialConfig::default();
    own.model.model = Some(project.model.clone());
    own.data.train = Some(of_train.clone());
    own.data.eval = held_out.as_ref().map(|_| of_held_out.clone());
    own.output.output_dir = Some(project.run(id));
    let mut layers = vec![Layer::from_flags(below)];
    layers.extend(wanted.preset.map(Preset::layer));
    layers.extend([Layer::from_flags(page), more, Layer::from_flags(own)]);
    let config = RunConfig::resolve(layers)?;
    if !config.lora.enabled {
        let fix = "leave it out, or run `aweigh align` with these flags";
        return Err(Error::input("settings: lora.enabled", "true: the app keeps adapters", "false", fix));
    }
    create(&project.folder.join("data"))?;
    write_whole(&of_train, train.as_bytes())?;
    match held_out {
        Some(held_out) => write_whole(&of_held_out, held_out.as_bytes())?,
        None => drop(fs::remove_file(&of_held_out)),
    }
    Ok(config)
}

/// The project's model without its weights, and the tokens of the longest flagged answer.
fn measured(app: &App, project: &Project) -> Result<(Model, usize)> {
    let model = open::model(&project.model, false, &*app.settings.messages)?;
    let (tokenizer, flags) = (model.bytes().tokenizer()?, project.flags().all().to_vec());
    // A flag that the chat template refuses is an error of the run, which names its line.
    let tokens =
        |flag: &Flag| tokenizer.encode_completion(&flag.prompt, &flag.completion).map_or(0, |ids| ids.len());
    let longest = flags.iter().map(tokens).max().unwrap_or(0);
    Ok((model, longest))
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
pub async fn plan(app: &App, project: &Project, wanted: &Wanted) -> Result<Plan> {
    let (model, longest) = measured(app, project)?;
    let config = prepared(app, project, (NO_RUN, longest), wanted)?;
    let files = RunFiles::with(&config, Source::read(&config.data.train, "flags")?, model)?;
    let files = with_meter(files, &config)?;
    let job = files.job(&config)?;
    let binding = open::binding(config.gpu.adapter.as_deref(), config.gpu.backend).await?;
    let mut remarks = files.remarks();
    remarks.extend(config.warnings());
    remarks.extend(job.remarks().iter().cloned());
    let Planned { config, plan, fitted } = Planned::of(&job, config, binding)?;
    let steps = job.steps(&config);
    let rows = |path: &Path| read_text(path, "flags").map_or(0, |text| text.lines().count());
    Ok(Plan {
        peak: plan.peak().total,
        savings: savings(&job, &config, &plan, binding)?,
        fitted,
        steps,
        seconds: seconds_per_step(project).map(|seconds| seconds * steps as f64),
        train: rows(&config.data.train),
        held_out: config.data.eval.as_deref().map_or(0, rows),
        remarks,
        settings: config.to_toml()?,
    })
}

/// How long a step of the last run that has ended took, with all that belongs to a run. Of resumed runs only
/// the time of the last part is known.
fn seconds_per_step(project: &Project) -> Option<f64> {
    let parts = |id: u32| {
        let names = entries(&project.run(id), "the run").unwrap_or_default();
        names.iter().filter(|name| name.starts_with(EVENTS)).count()
    };
    project.runs().into_iter().rev().filter(|&id| parts(id) == 1).find_map(|id| {
        let summary = summary(project, id);
        let steps = summary["steps"].as_f64().filter(|&steps| steps > 0.0)?;
        Some(summary["seconds"].as_f64()? / steps)
    })
}

/// Starts a run, and returns its number.
///
/// # Errors
/// Flags or settings that a run refuses; another run or work that goes on.
pub fn start(app: &Arc<App>, project: &Arc<Project>, wanted: &Wanted) -> Result<u32> {
    let (_, longest) = measured(app, project)?;
    let mut activity = app.activity();
    activity.idle()?;
    let id = project.next_run();
    let config = prepared(app, project, (id, longest), wanted)?;
    project.keep_run(id)?;
    create(&project.folder.join("runs"))?;
    let place = Place::New { overwrite: false };
    begin(app, &mut activity, (project, id), (config, place), wanted.keep_chat)?;
    Ok(id)
}

/// Resumes a run from its last checkpoint.
///
/// # Errors
/// A run that has ended or has no checkpoint; another run or work that goes on.
pub fn resume(app: &Arc<App>, project: &Arc<Project>, id: u32, keep_chat: bool) -> Result<()> {
    let mut activity = app.activity();
    activity.idle()?;
    let folder = RunFolder::resume(&project.run(id), "the run")?;
    let flags = PartialConfig { gpu: gpu_flags(app), ..PartialConfig::default() };
    let config = settings_of(&project.run(id), flags)?;
    begin(app, &mut activity, (project, id), (config, Place::Resume(folder)), keep_chat)
}

/// The settings that the run in `folder` was started with, under `flags`.
///
/// # Errors
/// [`Error::Input`] for a folder without config.toml, or a damaged one.
pub fn settings_of(folder: &Path, flags: PartialConfig) -> Result<RunConfig> {
    let path = folder.join("config.toml");
    let written = Layer::from_toml(&read_text(&path, "the run")?, &path.display().to_string())?;
    let mut config = RunConfig::resolve(vec![written, Layer::from_flags(flags)])?;
    config.output.output_dir = folder.into();
    Ok(config)
}

fn begin(
    app: &Arc<App>,
    activity: &mut Activity,
    (project, id): (&Arc<Project>, u32),
    (config, place): (RunConfig, Place),
    keep_chat: bool,
) -> Result<()> {
    let live = Live::new(project.id(), id);
    let (own, project, running) = (app.clone(), project.clone(), live.clone());
    let task = start_task("run", async move || {
        let closes = !keep_chat && own.current.is_open();
        if closes {
            let why = "a run uses the GPU; the model answers again when it has ended";
            own.current.close(Some(why.into())).await;
        }
        let ended = guarded("aligning", work(&own, &project, (config, place), &running)).await;
        if closes && !own.ending() {
            own.current.open(project.clone());
        } else if ended.is_ok() {
            own.current.add_run(&project, id).await;
        }
        running.ended(&ended);
    })?;
    activity.begin_run(live, task);
    Ok(())
}

async fn work(
    app: &App,
    project: &Project,
    (config, place): (RunConfig, Place),
    live: &Arc<Live>,
) -> Result<()> {
    let model = open::model(&project.model, true, &*app.settings.messages)?;
    let tokenizer = model.bytes().tokenizer()?;
    let train = Source::read(&config.data.train, "flags")?;
    let files = with_meter(RunFiles::with(&config, train, model)?, &config)?;
    run::run_async(&files, config, place, &mut Watch::new(live.clone(), tokenizer)).await.map(drop)
}

/// How far run `id` is.
pub fn stage(app: &App, project: &Project, id: u32) -> Stage {
    let folder = project.run(id);
    match app.live(project).map(|live| live.view()).filter(|view| view.id == id) {
        Some(view) => view.stage,
        _ if fs::is_file(&folder.join("summary.json")) => Stage::Finished,
        _ if fs::is_file(&folder.join("config.toml")) => Stage::Paused,
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
    // A run that has failed at once has no folder.
    let mut ids = project.runs();
    ids.extend(app.live(project).map(|live| live.view().id).filter(|id| !ids.contains(id)));
    ids.into_iter().rev().map(one).collect()
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
    let view = app.live(project).map(|live| live.view()).filter(|view| view.id == id);
    let run = match read(project, id) {
        Ok(run) => run,
        // It has written nothing yet.
        Err(_) if view.is_some() => Run::default(),
        Err(error) => return Err(error),
    };
    let rows = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let [train, held_out] = project.data(id).map(|path| rows(&path));
    Ok(json!({
        "id": id, "stage": stage, "resumable": resumable(project, id), "live": view,
        "train": train, "held_out": held_out,
        "summary": run.summary, "charts": drawn(std::slice::from_ref(&run)), "told": told(&run),
        "settings": run.config, "comparison": comparison(project, id).as_ref().map(told_eval),
        "folder": project.run(id),
    }))
}

/// Whether run `id` has not ended, and has a checkpoint.
fn resumable(project: &Project, id: u32) -> bool {
    let folder = project.run(id);
    let names = entries(&folder, "the run").unwrap_or_default();
    let begun = |name: &String| name.starts_with(checkpoint::PREFIX) || name.starts_with(checkpoint::DRAWN);
    names.iter().any(begun) && !fs::exists(&folder.join("summary.json"))
}

/// Removes run `id` and what was made from it.
///
/// # Errors
/// A run that goes on, [`Error::Io`].
pub async fn remove(app: &App, project: &Project, id: u32) -> Result<()> {
    remove_files(app, project, id)?;
    app.current.drop_run(id).await;
    Ok(())
}

fn remove_files(app: &App, project: &Project, id: u32) -> Result<()> {
    let mut activity = app.activity();
    activity.idle()?;
    for folder in [project.exports(id), project.run(id)] {
        if fs::exists(&folder) {
            fs::remove_dir_all(&folder).map_err(|error| Error::io(&folder, "remove", error))?;
        }
    }
    for file in project.data(id).iter().chain([&project.comparison(id)]) {
        if fs::exists(file) {
            fs::remove_file(file).map_err(|error| Error::io(file, "remove", error))?;
        }
    }
    activity.forget(project, id);
    Ok(())
}
