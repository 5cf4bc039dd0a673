//! Opens a run's GPU, with the compiled pipelines and kernel choices cached on disk for it.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use pollster::block_on;

use crate::Result;
use crate::config::RunConfig;
use crate::files::cache;
use crate::gpu::{Faults, Gpu, Options, Witness};
use crate::paranoid::Paranoid;

/// An open GPU. When it is dropped, new compiled pipelines, and what was measured of it, are saved in the
/// user's cache directory.
pub struct OpenGpu {
    gpu: Gpu,
    /// The driver's pipeline cache right after opening, to tell later whether it has changed.
    known: Option<Vec<u8>>,
    /// Whether to keep how products read their operands fastest: if that is measured with this GPU, without
    /// pauses and checks.
    keeps: bool,
}

impl OpenGpu {
    /// As [`OpenGpu::opened`]. Blocks.
    ///
    /// # Errors
    /// As [`OpenGpu::opened`].
    pub fn open(options: &Options, tuned: bool) -> Result<Self> {
        block_on(Self::opened(options, tuned))
    }

    /// Opens a GPU with its cached pipelines and, with `tuned`, with the kernels that `aweigh devices --tune`
    /// measured as the fastest on it.
    ///
    /// # Errors
    /// [`crate::Error::NoAdapter`] if there is no GPU, [`crate::Error::OutOfMemory`].
    pub async fn opened(options: &Options, tuned: bool) -> Result<Self> {
        Self::with_measured(options, tuned, true).await
    }

    /// Opens a GPU as [`OpenGpu::open`] does, but without what was measured of it earlier: how products read
    /// their operands fastest is measured again. Blocks.
    ///
    /// # Errors
    /// As [`OpenGpu::open`].
    pub fn open_unmeasured(options: &Options) -> Result<Self> {
        block_on(Self::with_measured(options, false, false))
    }

    async fn with_measured(options: &Options, kernels: bool, operands: bool) -> Result<Self> {
        let mut options = options.clone();
        if let Ok(faults) = std::env::var("AWEIGH_FAULTS") {
            // One counter per process: it continues when a GPU is opened again.
            static FAULTS: OnceLock<Faults> = OnceLock::new();
            let parsed = Faults::parse(&faults)?;
            options.faults = FAULTS.get_or_init(|| parsed).clone();
        }
        let mut gpu = Gpu::open(&options).await?;
        if let Some(tuning) = cache::tuning(gpu.summary()).filter(|_| kernels) {
            let taken = gpu.use_tuning(tuning);
            let what = if taken { "used" } else { "from another version, ignored" };
            log::info!("measured kernel choices: {what}");
        }
        gpu.use_pipelines(&cache::pipelines(gpu.summary()).unwrap_or_default());
        let known = gpu.pipelines();
        if let Some(rows) = cache::texels_from(gpu.summary()).filter(|_| operands) {
            gpu.use_texels_from(rows);
        }
        let undisturbed = !options.background && options.witness.is_none();
        let keeps = undisturbed && gpu.known_texels_from().is_none();
        Ok(Self { gpu, known, keeps })
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
        if let Some(rows) = self.gpu.known_texels_from().filter(|_| self.keeps) {
            cache::save_texels_from(self.gpu.summary(), rows);
        }
    }
}

/// The check that compares dispatches with their f64 references (`--paranoid`).
fn paranoid() -> Arc<dyn Witness> {
    Paranoid::new(|reading| block_on(reading))
}

/// The options to open a run's GPU with.
pub(super) fn options(config: &RunConfig) -> Options {
    let g = &config.gpu;
    Options {
        adapter: g.adapter.clone(),
        backend: g.backend,
        precision: g.precision,
        submit_seconds: g.submit_budget.map(|ms| ms / 1000.0),
        background: g.background,
        witness: g.paranoid.then(paranoid),
        ..Options::default()
    }
}
