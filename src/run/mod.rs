//! A complete run, from its settings to its folder. `aweigh align`, `aweigh judge train` and `aweigh demo`
//! call it, each with its own [`Material`].
//!
//! [`run`] opens the GPU, plans the memory, samples anchors, trains, keeps checkpoints and writes the result.
//! If the GPU is lost, it opens it again and resumes; with `gpu.fit`, it tries again with less memory. It
//! blocks: programs with a window call it on a thread of their own, and watch, pause or end it through a
//! [`Watcher`]. [`run_async`] is the same for programs that wait otherwise, such as a browser's tab.

mod device;
mod fit;
mod keeper;
mod origin;
mod result;
mod sources;

use std::path::Path;
use std::sync::Arc;

use pollster::block_on;
use web_time::Instant;

use crate::config::RunConfig;
use crate::data::{ChatTokenizer, LengthCounts};
use crate::error::{Error, Result, setting};
use crate::files::{RunFolder, checkpoint, write_whole};
use crate::gpu::{Gpu, SUBMIT_SECONDS, bytes};
use crate::train::{Job, Metrics, Observer, Outcome, Prepared, Setup, State, Unwatched, align};
use device::options;
use keeper::{Disk, Keeper};
use origin::{last_state, origin, settings_sum};

pub use device::OpenGpu;
pub use fit::{Planned, Saving, savings};
pub use result::{Summary, write_adapter, write_result};
pub use sources::{Material, RunFiles};

/// Watches a run: what an [`Observer`] sees, and its memory plan, folder and checkpoints. All methods do
/// nothing by default. An error ends the run, except from `figures`.
pub trait Watcher: Observer {
    /// The run's memory plan, and the settings that were changed to make it fit.
    fn planned(&mut self, planned: &Planned) {
        let _ = planned;
    }
    /// The model is on the GPU. Called once, before anything is sampled or written.
    fn loaded(&mut self, loaded: &Loaded) -> Result<()> {
        let _ = loaded;
        Ok(())
    }
    /// The run's folder exists, if it has one, and the run starts from the beginning (`None`) or resumes
    /// after `from` steps. Called again after a lost GPU.
    fn rewound(&mut self, folder: Option<&Path>, from: Option<usize>) -> Result<()> {
        let _ = (folder, from);
        Ok(())
    }
    /// Metrics that are written to metrics.jsonl; `prefix` is "train/" or "eval/". If this fails, the run
    /// continues with a warning.
    fn figures(&mut self, prefix: &str, metrics: &Metrics) -> Result<()> {
        let _ = (prefix, metrics);
        Ok(())
    }
    /// A checkpoint was written.
    fn kept(&mut self, state: &State) {
        let _ = state;
    }
    /// The GPU has less memory than planned. `savings` are settings that would help. The run then ends,
    /// because `gpu.fit` is off.
    fn too_large(&mut self, savings: &[Saving]) {
        let _ = savings;
    }
}

impl Watcher for Unwatched {}

/// A run that is about to start.
#[non_exhaustive]
pub struct Loaded<'a> {
    /// The GPU.
    pub gpu: &'a Gpu,
    /// The model's name.
    pub model: &'a str,
    /// The run's starting state, with the model on the GPU.
    pub setup: &'a Setup,
    /// The model's tokenizer.
    pub tokenizer: &'a ChatTokenizer,
    /// Counts of the training rows that were kept, cut or left out.
    pub lengths: &'a LengthCounts,
    /// The settings, including changes to make the run fit.
    pub config: &'a RunConfig,
}

/// Where a run is written.
pub enum Place {
    /// Nowhere.
    Nothing,
    /// Into a new folder, `output.output_dir`.
    New {
        /// Whether it may replace an earlier run there.
        overwrite: bool,
    },
    /// Into the folder of an earlier run, which is resumed.
    Resume(RunFolder),
}

/// A finished run.
#[non_exhaustive]
pub struct Finished {
    /// The result, with the model in the state that is kept.
    pub outcome: Outcome,
    /// The GPU that the model is on.
    pub gpu: OpenGpu,
    /// The model's tokenizer.
    pub tokenizer: Arc<ChatTokenizer>,
    /// The content of `summary.json`.
    pub summary: Summary,
    /// The settings, including changes to make the run fit.
    pub config: RunConfig,
    /// The run's folder, locked against other writers until this is dropped.
    pub folder: Option<RunFolder>,
}

/// The run fails when the GPU is lost this many times without progress in between.
const LOSSES: usize = 3;

/// Does a whole run. Blocks until it ends: not for a browser's tab, where nothing may block.
///
/// # Errors
/// As [`run_async`].
pub fn run(
    material: &dyn Material,
    config: RunConfig,
    place: Place,
    watcher: &mut dyn Watcher,
) -> Result<Finished> {
    block_on(run_async(material, config, place, watcher))
}

/// Does a whole run.
///
/// # Errors
/// Errors of the settings, the files or the GPU; the run's folder is then unchanged or has the last
/// checkpoint. [`Error::Interrupted`] if the watcher asked to stop.
pub async fn run_async(
    material: &dyn Material,
    mut config: RunConfig,
    place: Place,
    watcher: &mut dyn Watcher,
) -> Result<Finished> {
    let started = Instant::now();
    let overwrite = matches!(place, Place::New { overwrite: true });
    let resumed = matches!(place, Place::Resume(_));
    let mut attempt = Attempt {
        material,
        wants_folder: !matches!(place, Place::Nothing),
        overwrite,
        resumed,
        folder: if let Place::Resume(folder) = place { Some(folder) } else { None },
        first: true,
        started,
    };
    config.check()?;
    if let (true, None) = (attempt.wants_folder, &attempt.folder) {
        RunFolder::check(&config.output.output_dir, &setting("output_dir"), overwrite)?;
    }
    for warning in material.remarks().into_iter().chain(config.warnings()) {
        watcher.warned(&warning);
    }
    loop {
        let gpu = OpenGpu::opened(&options(&config), config.gpu.tuning).await?;
        let binding = gpu.max_binding();
        let job = material.job(&config)?;
        if attempt.first {
            job.remarks().iter().for_each(|remark| watcher.warned(remark));
        }
        let planned = Planned::of(&job, config.clone(), binding)?;
        watcher.planned(&planned);
        let error = match attempt.run(gpu, job, &planned, watcher).await {
            Err(error @ Error::OutOfMemory { .. }) => error,
            ended => return ended,
        };
        let Error::OutOfMemory { held, bytes: wanted, .. } = error else { return Err(error) };
        let job = material.job(&planned.config)?;
        if !planned.config.gpu.fit {
            watcher.too_large(&savings(&job, &planned.config, &planned.plan, binding)?);
            return Err(error);
        }
        let less = planned.smaller(&job, held + wanted, binding)?;
        let full = bytes(held + wanted);
        watcher.warned(&format!("{full} did not fit: trying again with {}", less.fitted.join(", ")));
        let same = settings_sum(&less.config) == settings_sum(&planned.config);
        if let Some(folder) = attempt.folder.as_ref().filter(|_| !same) {
            watcher.warned("this changes results: the run starts over");
            checkpoint::remove_all(folder.path())?;
        }
        config = less.config;
    }
}

/// What is kept when a run is tried again with less memory.
struct Attempt<'a> {
    material: &'a dyn Material,
    wants_folder: bool,
    overwrite: bool,
    resumed: bool,
    folder: Option<RunFolder>,
    first: bool,
    started: Instant,
}

impl Attempt<'_> {
    async fn run(
        &mut self,
        gpu: OpenGpu,
        job: Job<'_>,
        planned: &Planned,
        watcher: &mut dyn Watcher,
    ) -> Result<Finished> {
        let (material, config) = (self.material, &planned.config);
        let Prepared { setup, tokenizer, lengths } = job.load(&gpu, config)?;
        material.check_unchanged()?;
        if std::mem::take(&mut self.first) {
            let (setup, tokenizer, lengths) = (&setup, &tokenizer, &lengths);
            let model = material.model().bytes().name;
            watcher.loaded(&Loaded { gpu: &gpu, model, setup, tokenizer, lengths, config })?;
        }
        if config.stop.enabled && setup.eval.is_empty() {
            watcher.warned(&format!(
                "the stop rule has no held-out examples, because there are fewer than 10 examples: give \
                 some with {}",
                setting("eval")
            ));
        }
        let begun = origin(config, &material.inputs(), &gpu)?;
        let state = match &self.folder {
            Some(folder) => {
                let state = last_state(folder.path(), &begun, &mut |text| watcher.warned(&text))?;
                watcher.noted(&match &state {
                    Some(state) => format!("resuming {}", state.place()),
                    None => "no checkpoint yet: the run starts over".into(),
                });
                state
            }
            None => None,
        };
        if self.folder.is_none() && self.wants_folder {
            let path = &config.output.output_dir;
            self.folder = Some(RunFolder::create(path, &setting("output_dir"), self.overwrite)?);
        }
        let write = |name: &str, bytes: &[u8]| match &self.folder {
            Some(folder) => write_whole(&folder.path().join(name), bytes),
            None => Ok(()),
        };
        if !self.resumed || !planned.fitted.is_empty() {
            write("config.toml", config.to_toml()?.as_bytes())?;
        }
        let adapter_config = setup.decoder.adapter_config(material.model().bytes().name);
        let disk = self.folder.as_ref().map(|folder| Disk::new(folder, adapter_config, begun));
        let from = state.as_ref().and_then(State::trained);
        let mut keeper = Keeper::new(watcher, (&tokenizer, config), disk, from)?;
        let (gpu, outcome, weights) = recovering(gpu, (setup, state), config, material, &mut keeper).await?;
        drop(keeper);
        if let Err(error) = material.check_unchanged() {
            watcher.warned(&format!("{error}; the result is for the weights before that change"));
        }
        if outcome.steps > 0 && outcome.kept_step == 0 {
            watcher.warned(
                "no step was better than the starting model on the held-out examples: the result is the \
                 starting model",
            );
        }
        let summary = Summary::new(&gpu, &outcome, (lengths, planned.plan.peak().total), self.started);
        if let Some(folder) = &self.folder {
            write_result(folder.path(), material.model(), &outcome.decoder, &weights)?;
            write("summary.json", &serde_json::to_vec_pretty(&summary).unwrap_or_default())?;
            folder.keep();
            checkpoint::remove_all(folder.path())?;
        }
        let (config, folder) = (config.clone(), self.folder.take());
        Ok(Finished { outcome, gpu, tokenizer, summary, config, folder })
    }
}

/// Trains. If the GPU is lost, it is opened again, the model is loaded onto it, and the run resumes from its
/// last state, with smaller submits. Also returns the trained tensors of the state that is kept, as
/// safetensors.
async fn recovering(
    mut gpu: OpenGpu,
    (mut setup, begun): (Setup, Option<State>),
    config: &RunConfig,
    material: &dyn Material,
    keeper: &mut Keeper<'_>,
) -> Result<(OpenGpu, Outcome, Vec<u8>)> {
    let mut options = options(config);
    setup.resume = begun.clone();
    let mut losses = 0;
    loop {
        let from = setup.resume.as_ref().map(State::progress);
        let error = match trained(&gpu, setup, config, keeper).await {
            Ok((outcome, weights)) => return Ok((gpu, outcome, weights)),
            Err(error @ Error::DeviceLost { .. }) => error,
            Err(error) => return Err(error),
        };
        let state = keeper.last_state().or(begun.as_ref()).cloned();
        losses = if state.as_ref().map(State::progress) > from { 1 } else { losses + 1 };
        if losses == LOSSES {
            return Err(error);
        }
        let seconds = options.submit_seconds.unwrap_or(SUBMIT_SECONDS) / 2.0;
        options.submit_seconds = Some(seconds);
        keeper.warn(&format!(
            "{error}; reopening it and {}, with submits of {:.0} ms",
            state.as_ref().map_or("starting over".into(), |state| format!("resuming {}", state.place())),
            1000.0 * seconds
        ));
        keeper.rewind(state.as_ref().and_then(State::trained))?;
        drop(gpu);
        gpu = OpenGpu::opened(&options, config.gpu.tuning).await?;
        setup = material.job(config)?.load(&gpu, config)?.setup;
        material.check_unchanged()?;
        setup.resume = state;
    }
}

/// Trains, and reads the trained tensors of the state that is kept, as safetensors.
async fn trained(
    gpu: &Gpu,
    setup: Setup,
    config: &RunConfig,
    keeper: &mut Keeper<'_>,
) -> Result<(Outcome, Vec<u8>)> {
    let outcome = align(gpu, setup, config, keeper).await?;
    let weights = outcome.decoder.trained_safetensors(gpu).await?;
    Ok((outcome, weights))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with a window does the run on another thread, and gets the result from there.
    #[test]
    fn a_run_goes_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<RunFiles>();
        is_send::<RunConfig>();
        is_send::<Place>();
        is_send::<Finished>();
        is_send::<Error>();
        fn is_sync<T: Sync>() {}
        is_sync::<Gpu>();
    }
}
