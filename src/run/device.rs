//! The GPU of a run, opened with what is kept on disk for it.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use pollster::block_on;

use crate::Result;
use crate::config::RunConfig;
use crate::files::cache;
use crate::gpu::{Faults, Gpu, Options, Witness};
use crate::paranoid::Paranoid;

/// An open GPU. When it is dropped, its compiled pipelines are kept in the user's cache directory.
pub struct OpenGpu {
    gpu: Gpu,
    /// What the driver gave before anything ran.
    known: Option<Vec<u8>>,
}

impl OpenGpu {
    /// Opens a GPU with the pipelines that were compiled on it before; with `tuned`, also with the kernels
    /// that were measured to be the fastest on it (`aweigh devices --tune`). Blocks.
    ///
    /// # Errors
    /// [`crate::Error::NoAdapter`] where there is none.
    pub fn open(options: &Options, tuned: bool) -> Result<Self> {
        let mut options = options.clone();
        if let Ok(faults) = std::env::var("AWEIGH_FAULTS") {
            // Once for the process: a GPU that is opened again goes on counting.
            static FAULTS: OnceLock<Faults> = OnceLock::new();
            let parsed = Faults::parse(&faults)?;
            options.faults = FAULTS.get_or_init(|| parsed).clone();
        }
        let mut gpu = block_on(Gpu::open(&options))?;
        if let Some(tuning) = cache::tuning(gpu.summary()).filter(|_| tuned) {
            let taken = gpu.use_tuning(tuning);
            let what = if taken { "taken" } else { "of another version, left alone" };
            log::info!("measured kernel choices: {what}");
        }
        gpu.use_pipelines(&cache::pipelines(gpu.summary()).unwrap_or_default());
        let known = gpu.pipelines();
        Ok(Self { gpu, known })
    }
}

impl Deref for OpenGpu {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.gpu
    }
}

impl Drop for OpenGpu {
    fn drop(&mut self) {
        let (submits, allocations) = self.gpu.faults().counted();
        log::info!("{submits} submits, {allocations} allocations");
        let data = self.gpu.pipelines();
        if let Some(data) = data.as_ref().filter(|_| data != self.known) {
            cache::save_pipelines(self.gpu.summary(), data);
        }
    }
}

/// What compares dispatches with their f64 references (`--paranoid`).
fn paranoid() -> Arc<dyn Witness> {
    Paranoid::new(|reading| block_on(reading))
}

/// How the GPU of a run is opened.
pub(super) fn options(config: &RunConfig) -> Options {
    let g = &config.gpu;
    Options {
        adapter: g.adapter.clone(),
        precision: g.precision,
        submit_seconds: g.submit_budget.map(|ms| ms / 1000.0),
        background: g.background,
        witness: g.paranoid.then(paranoid),
        ..Options::default()
    }
}
