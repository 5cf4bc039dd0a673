//! One run, from its settings to its folder: `aweigh align`, `aweigh judge train` and `aweigh demo` are this
//! with another [`Material`].
//!
//! [`run`] opens the GPU, plans the memory, draws anchors, trains, keeps checkpoints, and writes the result.
//! It opens a GPU that was lost again and goes on, and tries again with less memory where it may. It blocks:
//! programs with a window call it on a thread of their own, and watch, pause or end it through a [`Watcher`].

mod device;
mod fit;
mod keeper;
mod origin;
mod result;
mod sources;

use std::path::Path;
use std::time::Instant;

use pollster::block_on;

use crate::config::RunConfig;
use crate::data::{ChatTokenizer, LengthCounts};
use crate::error::{Error, Result};
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

/// Watches a run with its files and its GPU, beside what any [`Observer`] sees. All methods do nothing by
/// default; an error ends the run.
pub trait Watcher: Observer {
    /// What the run will hold in memory, and what was changed to make it fit.
    fn planned(&mut self, planned: &Planned) {
        let _ = planned;
    }
    /// The model is on the GPU; told once, before anything is drawn or written.
    fn loaded(&mut self, loaded: &Loaded) -> Result<()> {
        let _ = loaded;
        Ok(())
    }
    /// The run's folder is there, if it has one, and the run begins at its start (`None`) or goes on after so
    /// many steps. Told again after a GPU was lost.
    fn rewound(&mut self, folder: Option<&Path>, from: Option<usize>) -> Result<()> {
        let _ = (folder, from);
        Ok(())
    }
    /// Figures that go into metrics.jsonl, "train/" or "eval/". Where this fails the run goes on, with a
    /// warning.
    fn figures(&mut self, prefix: &str, metrics: &Metrics) -> Result<()> {
        let _ = (prefix, metrics);
        Ok(())
    }
    /// A checkpoint is on disk.
    fn kept(&mut self, state: &State) {
        let _ = state;
    }
    /// Something worth knowing that is no warning.
    fn noted(&mut self, text: &str) {
        let _ = text;
    }
    /// The GPU had less memory than was planned; settings that would help. The run then ends, as `gpu.fit` is
    /// off.
    fn too_large(&mut self, savings: &[Saving]) {
        let _ = savings;
    }
}

impl Watcher for Unwatched {}

/// A run that is about to begin.
#[non_exhaustive]
pub struct Loaded<'a> {
    /// The GPU.
    pub gpu: &'a Gpu,
    /// The model's name.
    pub model: &'a str,
    /// The run's start, with the model on the GPU.
    pub setup: &'a Setup,
    /// The model's tokenizer.
    pub tokenizer: &'a ChatTokenizer,
    /// What the length limits did to the training rows.
    pub lengths: &'a LengthCounts,
    /// The settings, as they were made to fit.
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
    /// Into the folder of an earlier run, to go on with it.
    Resume(RunFolder),
}

/// A run that has ended by itself.
#[non_exhaustive]
pub struct Finished {
    /// What it came to, with the model in the state that is kept.
    pub outcome: Outcome,
    /// Where it ended.
    pub gpu: OpenGpu,
    /// The model's tokenizer.
    pub tokenizer: ChatTokenizer,
    /// `summary.json`.
    pub summary: Summary,
    /// The settings, as they were made to fit.
    pub config: RunConfig,
    /// The run's folder; others may write to it when this is dropped.
    pub folder: Option<RunFolder>,
}

/// Losses of the GPU that a run puts up with before it has come any further.
const LOSSES: usize = 3;

/// A whole run. Blocks until it ends.
///
/// # Errors
/// Whatever is wrong with the settings, the files or the GPU; the run's folder is then as it was, or holds
/// the last checkpoint. [`Error::Interrupted`] where the watcher asked to stop.
pub fn run(
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
        RunFolder::check(&config.output.output_dir, "--output-dir", overwrite)?;
    }
    for warning in material.remarks().into_iter().chain(config.warnings()) {
        watcher.warned(&warning);
    }
    loop {
        let gpu = OpenGpu::open(&options(&config), config.gpu.tuning)?;
        let binding = gpu.max_binding();
        let job = material.job(&config)?;
        if attempt.first {
            job.remarks().iter().for_each(|remark| watcher.warned(remark));
        }
        let planned = Planned::of(&job, config.clone(), binding)?;
        watcher.planned(&planned);
        let error = match attempt.run(gpu, job, &planned, watcher) {
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
        watcher.warned(&format!("{full} did not fit: trying again with {}", less.fitted.join(" ")));
        let same = settings_sum(&less.config) == settings_sum(&planned.config);
        if let Some(folder) = attempt.folder.as_ref().filter(|_| !same) {
            watcher.warned("that changes results: the run begins again");
            checkpoint::remove_all(folder.path())?;
        }
        config = less.config;
    }
}

/// What stays when a run is tried again with less memory.
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
    fn run(
        &mut self,
        gpu: OpenGpu,
        job: Job,
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
            watcher.warned(
                "nothing is held out of fewer than 10 examples, so the stop rule cannot watch: give --eval \
                 FILE",
            );
        }
        let begun = origin(config, &material.inputs(), &gpu);
        let state = match &self.folder {
            Some(folder) => {
                let state = last_state(folder.path(), &begun, &mut |text| watcher.warned(&text))?;
                watcher.noted(&match &state {
                    Some(state) => format!("going on {}", state.place()),
                    None => "no checkpoint yet: the run begins again".into(),
                });
                state
            }
            None => None,
        };
        if self.folder.is_none() && self.wants_folder {
            let path = &config.output.output_dir;
            self.folder = Some(RunFolder::create(path, "--output-dir", self.overwrite)?);
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
        let (gpu, outcome, weights) = recovering(gpu, (setup, state), config, material, &mut keeper)?;
        drop(keeper);
        if let Err(error) = material.check_unchanged() {
            watcher.warned(&format!("{error}; the result belongs to the weights as they were"));
        }
        if outcome.steps > 0 && outcome.kept_step == 0 {
            watcher.warned(
                "no step was better than the start on the held-out examples: the result is the model as it \
                 was",
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

/// Trains. Where the GPU is lost it is opened again, the model is loaded onto it, and the run goes on from
/// the last state that was taken, with smaller submits. Also returns the trained tensors of the state that is
/// kept.
fn recovering(
    mut gpu: OpenGpu,
    (mut setup, begun): (Setup, Option<State>),
    config: &RunConfig,
    material: &dyn Material,
    keeper: &mut Keeper,
) -> Result<(OpenGpu, Outcome, Vec<u8>)> {
    let mut options = options(config);
    setup.resume = begun.clone();
    let mut losses = 0;
    loop {
        let from = setup.resume.as_ref().map(State::progress);
        let run = async {
            let outcome = align(&gpu, setup, config, keeper).await?;
            let weights = outcome.decoder.trained_safetensors(&gpu).await?;
            Ok((outcome, weights))
        };
        let error = match block_on(run) {
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
            "{error}; opening it again and going on {}, with submits of {:.0} ms",
            state.as_ref().map_or("from the start".into(), State::place),
            1000.0 * seconds
        ));
        keeper.rewind(state.as_ref().and_then(State::trained))?;
        drop(gpu);
        gpu = OpenGpu::open(&options, config.gpu.tuning)?;
        setup = material.job(config)?.load(&gpu, config)?.setup;
        material.check_unchanged()?;
        setup.resume = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with a window runs on a thread of its own, and takes the result from there.
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
