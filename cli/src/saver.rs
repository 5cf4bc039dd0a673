//! When a run's state is taken, and where it is kept: in memory for a GPU that is lost, on disk for
//! everything else.

use std::time::{Duration, Instant};

use crate::terminal::interrupt;
use crate::terminal::output::Output;
use aweigh::config::RunConfig;
use aweigh::error::{Error, Result};
use aweigh::files::RunFolder;
use aweigh::files::checkpoint::{self, Origin};
use aweigh::gpu::Gpu;
use aweigh::train::{Inputs, State};

/// The settings that a run's result depends on, as a number. What is read counts by its content, not by its
/// path.
pub fn settings_sum(config: &RunConfig) -> String {
    let mut own = config.clone();
    (own.output, own.gpu) = Default::default();
    (own.model.model, own.data.train) = Default::default();
    // These only say how memory is used.
    own.model.offload = false;
    (own.anchors.max_num_seqs, own.train.recompute) = Default::default();
    if own.lora.lora_dropout == 0.0 {
        own.train.max_tokens_per_batch = None;
    }
    sum(&own)
}

fn sum(of: &impl serde::Serialize) -> String {
    format!("CRC-32 {:08x}", crc32fast::hash(&serde_json::to_vec(of).unwrap_or_default()))
}

/// What a run of `config` on `inputs` is begun from.
pub fn origin(config: &RunConfig, inputs: &Inputs, gpu: &Gpu) -> Origin {
    let (summary, precision) = (gpu.summary(), gpu.precision());
    let tuned = match gpu.tuning() {
        Some(tuning) => format!(", kernels as measured ({})", sum(tuning)),
        None => String::new(),
    };
    let version = env!("CARGO_PKG_VERSION");
    Origin {
        settings: settings_sum(config),
        inputs: inputs.sums(),
        adapter: format!(
            "{} ({}, {}) in {precision:?}{tuned}, aweigh {version}",
            summary.name, summary.backend, summary.driver
        ),
    }
}

/// The longest time between two writes of the anchors while they are drawn.
const ANCHORS_EVERY: Duration = Duration::from_secs(60);

/// Checkpoints of a run.
pub struct Saver<'a> {
    output: &'a Output,
    disk: Option<Disk<'a>>,
    snapshot_steps: usize,
    /// The last state that was taken.
    last: Option<State>,
}

/// A run's folder, and what its checkpoints say beside the state.
pub struct Disk<'a> {
    /// Where they go.
    pub folder: &'a RunFolder,
    /// `adapter_config.json`, of a LoRA run.
    pub adapter_config: Option<String>,
    /// What the run was begun from.
    pub origin: Origin,
    steps: Option<usize>,
    every: Duration,
    keep: usize,
    written: Instant,
    failing: bool,
}

impl<'a> Disk<'a> {
    /// As `config` says.
    pub fn new(
        folder: &'a RunFolder,
        adapter_config: Option<String>,
        origin: Origin,
        config: &RunConfig,
    ) -> Self {
        let o = &config.output;
        let minutes = if o.save_minutes > 0.0 { o.save_minutes } else { f64::MAX };
        let every = Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX);
        let (steps, keep) = (o.save_steps, o.save_total_limit);
        Self { folder, adapter_config, origin, steps, every, keep, written: Instant::now(), failing: false }
    }

    fn is_due(&self, step: usize) -> bool {
        step == 0
            || interrupt::asked()
            || self.steps.is_some_and(|steps| step.is_multiple_of(steps))
            || self.written.elapsed() >= self.every
    }

    /// Writes a checkpoint. Where that fails the run goes on.
    fn write(&mut self, state: &State, output: &Output) {
        self.written = Instant::now();
        let config = self.adapter_config.as_deref();
        match checkpoint::write(self.folder.path(), state, config, &self.origin, self.keep) {
            Ok(()) => {
                self.folder.keep();
                if std::mem::take(&mut self.failing) {
                    output.warn(format_args!("checkpoints can be written again: step {}", state.step));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    output.warn(format_args!("{error}; the run goes on without this checkpoint"));
                }
            }
        }
    }
}

impl<'a> Saver<'a> {
    /// A saver of states in memory, and on `disk` where there is one.
    pub fn new(output: &'a Output, disk: Option<Disk<'a>>, config: &RunConfig) -> Self {
        Self { output, disk, snapshot_steps: config.gpu.snapshot_steps, last: None }
    }

    /// Whether an interrupt is to wait for the end of the step, so that the run can be gone on with.
    pub fn keeps(&self) -> bool {
        self.disk.is_some()
    }

    /// Whether a state is to be taken after so many steps.
    pub fn wants(&self, step: usize) -> bool {
        let snapshot = self.snapshot_steps > 0 && step.is_multiple_of(self.snapshot_steps);
        snapshot || self.disk.as_ref().is_some_and(|disk| disk.is_due(step))
    }

    /// Whether the anchors drawn so far are to be kept: they take long to draw, and little to write.
    pub fn wants_anchors(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.written.elapsed() >= disk.every.min(ANCHORS_EVERY))
    }

    /// Keeps a state.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where the user has asked to stop.
    pub fn save(&mut self, state: State) -> Result<()> {
        let asked = interrupt::asked();
        let due = |disk: &&mut Disk| state.trained().is_none_or(|step| disk.is_due(step));
        if let Some(disk) = self.disk.as_mut().filter(due) {
            disk.write(&state, self.output);
            if asked && !disk.failing {
                let run = disk.folder.path().display();
                let place = state.place();
                self.output.note(format_args!("stopped {place}; aweigh align --resume {run} goes on"));
            }
        }
        self.last = Some(state);
        if asked { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The last state that was taken.
    pub fn last(&self) -> Option<&State> {
        self.last.as_ref()
    }
}
