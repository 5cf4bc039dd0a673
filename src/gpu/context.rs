//! The device, its limits and its error reports.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use web_time::{Duration, Instant};

use super::adapter::{
    AdapterSummary, Scalar, Tier, adapters, choose, has_subgroups, needed, summary, why_first,
};
use super::fault::Faults;
use super::kernel::{Compiled, Kernel};
use super::memory::{Memory, Purpose};
use super::options::{BACKGROUND_SECONDS, Options, Precision, SUBMIT_SECONDS};
use super::pace::Pace;
use super::poller::Poller;
use super::profile::{KernelTime, Profiler};
use super::recorder::UNIFORM_BYTES;
use super::sentinel::{Sentinel, Submitted};
use super::texels::{Slot, Texels};
use super::tuning::Tuning;
use super::witness::Witness;
use crate::error::setting;
use crate::shader::Lanes;
use crate::{Error, Result};

/// Errors reported since the last [`Gpu::check`].
#[derive(Default)]
struct Reports {
    /// Why the device was lost, if it was. Never cleared.
    lost: Option<String>,
    messages: Vec<String>,
    /// The first error that a [`Witness`] found.
    found: Option<Error>,
}

fn locked(reports: &Mutex<Reports>) -> MutexGuard<'_, Reports> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The token that wgpu asks for before it opens a device with experimental features.
fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: this acknowledges that wgpu may translate cooperative matrices wrongly. Only one of this
    // crate's shaders uses them. It loads them only from workgroup memory, at constant strides and in bounds,
    // under uniform control flow.
    #[allow(unsafe_code)]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// An open device with its queue, memory and compiled kernels.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    memory: Memory,
    summary: AdapterSummary,
    why: Option<String>,
    tier: Tier,
    precision: Precision,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
    /// Parameter blocks of the current submit. `submits`, the number of submits with such blocks, is locked
    /// from the write to the submit, so that threads do not mix up their blocks.
    uniforms: wgpu::Buffer,
    submits: Mutex<u32>,
    sentinel: Sentinel,
    dispatches: AtomicU64,
    reports: Arc<Mutex<Reports>>,
    faults: Faults,
    background: bool,
    pace: Pace,
    poller: Poller,
    profiler: Option<Profiler>,
    pipeline_cache: Option<wgpu::PipelineCache>,
    tuning: Option<Tuning>,
    witness: Option<Arc<dyn Witness>>,
    lanes: Lanes,
    textures: Texels,
    /// `None` if the measurement failed.
    texels_from: OnceLock<Option<usize>>,
}

/// wgpu frees nothing in a browser: what a dropped device has there stays until JavaScript's garbage is
/// collected, which may be long.
#[cfg(target_arch = "wasm32")]
impl Drop for Gpu {
    fn drop(&mut self) {
        self.device.destroy();
    }
}

impl Gpu {
    /// Opens the adapter that `options` names, or the fastest one.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is no adapter, when none matches, or when it does not open;
    /// [`Error::OutOfMemory`].
    pub async fn open(options: &Options) -> Result<Self> {
        let found = adapters(options.backend).await?;
        let summaries: Vec<_> = found.iter().enumerate().map(|(i, a)| summary(i, a)).collect();
        let index = choose(&summaries, options.adapter.as_deref())?;
        let (adapter, summary) = (&found[index], summaries[index].clone());
        let mut limits = needed();
        if !options.default_limits {
            limits.max_buffer_size = adapter.limits().max_buffer_size;
            limits.max_storage_buffer_binding_size = adapter.limits().max_storage_buffer_binding_size;
        }
        let mut wanted = wgpu::Features::empty();
        wanted.set(wgpu::Features::TIMESTAMP_QUERY, options.profile);
        wanted.set(wgpu::Features::SUBGROUP, !options.default_limits);
        wanted.set(wgpu::Features::PIPELINE_CACHE, !options.default_limits);
        let half = options.precision == Precision::F16;
        wanted.set(wgpu::Features::SHADER_F16, half && !options.default_limits);
        wanted.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, half && !options.default_limits);
        let required_features = wanted & adapter.features();
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("aweigh"),
                required_features,
                required_limits: limits.clone(),
                experimental_features: experimental(required_features),
                ..Default::default()
            })
            .await
            .map_err(|e| Error::NoAdapter {
                found: format!("{} failed to open: {e}", summary.name),
                fix: format!(
                    "update its driver, or choose another adapter with {} (`aweigh devices` lists them)",
                    setting("gpu.adapter")
                ),
            })?;
        log::info!("adapter {} ({}, {})", summary.name, summary.backend, summary.driver);
        let mut gpu = Self::with_device(device, queue, summary, limits, options)?;
        gpu.why = options.adapter.is_none().then(|| why_first(&summaries, options.backend)).flatten();
        Ok(gpu)
    }

    fn with_device(
        device: wgpu::Device,
        queue: wgpu::Queue,
        summary: AdapterSummary,
        limits: wgpu::Limits,
        options: &Options,
    ) -> Result<Self> {
        let most = if options.background { BACKGROUND_SECONDS } else { f64::MAX };
        let aim = options.submit_seconds.unwrap_or(SUBMIT_SECONDS).min(most);
        let reports = Arc::new(Mutex::new(Reports::default()));
        let sink = reports.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            locked(&sink).messages.push(error.to_string());
        }));
        let sink = reports.clone();
        device.set_device_lost_callback(move |reason, message| {
            // A browser may destroy a device that is in use; here, only its last owner does.
            if cfg!(target_arch = "wasm32") || reason != wgpu::DeviceLostReason::Destroyed {
                locked(&sink).lost.get_or_insert(message);
            }
        });
        let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("uniforms"),
            size: UNIFORM_BYTES,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let memory = Memory::new(&device, &queue, most, options.faults.clone());
        std::mem::forget(memory.ledger().enter(Purpose::Staging, UNIFORM_BYTES));
        let sentinel = Sentinel::new(&memory)?;
        // Until there are measurements.
        let rate = match summary.tier {
            Tier::Software => 5e9,
            Tier::Portable => 1e11,
        };
        let timestamps = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        Ok(Self {
            poller: Poller::new(device.clone()),
            profiler: timestamps.then(|| Profiler::new(&queue)),
            tier: options.tier.unwrap_or(summary.tier),
            pipeline_cache: None,
            precision: options.precision,
            tuning: None,
            witness: options.witness.clone(),
            lanes: options.lanes,
            textures: Texels::default(),
            texels_from: options
                .texels
                .map_or_else(OnceLock::new, |all| OnceLock::from(Some(if all { 0 } else { usize::MAX }))),
            device,
            queue,
            memory,
            summary,
            why: None,
            kernels: Mutex::default(),
            uniforms,
            submits: Mutex::new(Sentinel::FIRST),
            sentinel,
            dispatches: AtomicU64::new(0),
            reports,
            faults: options.faults.clone(),
            background: options.background,
            pace: Pace::new(rate, aim),
        })
    }

    /// The adapter's description.
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// Why this adapter was taken, if there were others or if it is no GPU, and if none was named.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Which kernels this device runs.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether matrix products may round their inputs.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether the device was opened with f16 in shaders.
    pub fn shader_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// For cooperative matrices with factors of this type and f32 sums: their side, and the smallest number
    /// of lanes of the subgroups that hold them. `None` if the device was not opened with cooperative
    /// matrices and subgroups.
    pub(crate) fn cooperative(&self, inputs: Scalar) -> Option<(u32, u32)> {
        let mut needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
        needed.set(wgpu::Features::SHADER_F16, inputs == Scalar::F16);
        let open = self.device.features().contains(needed);
        let side = self.summary.cooperative_side(inputs).filter(|_| open)?;
        Some((side, self.summary.least_subgroup()?))
    }

    /// Chooses kernels by these measurements from now on. Measurements of another adapter, driver or version
    /// are ignored. Returns whether these are used.
    pub fn use_tuning(&mut self, tuning: Tuning) -> bool {
        let own = tuning.is_of(&self.summary);
        if own {
            self.tuning = Some(tuning);
        }
        own
    }

    /// The least number of rows and columns of products that should read their operands through textures;
    /// `measure` finds out the first time.
    pub(crate) fn texels_from(&self, measure: impl FnOnce() -> Option<usize>) -> usize {
        self.texels_from.get_or_init(measure).unwrap_or(usize::MAX)
    }

    /// The least number of rows of products that read their operands through textures, as it was measured or
    /// taken by [`Gpu::use_texels_from`]; `None` before the first product.
    pub fn known_texels_from(&self) -> Option<usize> {
        self.texels_from.get().copied().flatten()
    }

    /// Takes what [`Gpu::known_texels_from`] gave in an earlier process, unless [`Options::texels`] decides.
    pub fn use_texels_from(&self, rows: usize) {
        let _ = self.texels_from.set(Some(rows));
    }

    /// The texture of a slot, with `rows` rows or more.
    pub(super) fn texture(&self, slot: Slot, rows: u64) -> wgpu::Texture {
        let (texture, replaced) = self.textures.of(&self.device, slot, rows);
        if replaced {
            self.memory.bind_groups().forget(slot.key());
        }
        texture
    }

    /// The observer of the device's dispatches.
    pub fn witness(&self) -> Option<&dyn Witness> {
        self.witness.as_deref()
    }

    /// The order of invocations.
    pub(super) fn lanes(&self) -> Lanes {
        self.lanes
    }

    /// Makes the next [`Gpu::check`] fail with `error`, or with an earlier error if there is one.
    pub(super) fn report(&self, error: Error) {
        locked(&self.reports).found.get_or_insert(error);
    }

    /// Makes each [`Gpu::check`] from now on fail with [`Error::DeviceLost`].
    pub(super) fn lose(&self, message: String) {
        locked(&self.reports).lost.get_or_insert(message);
    }

    /// The faults to inject, and the counts of submits and allocations so far.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The measurements by which kernels are chosen.
    pub fn tuning(&self) -> Option<&Tuning> {
        self.tuning.as_ref()
    }

    /// Reuses compiled pipelines from `data`, which [`Gpu::pipelines`] returned earlier, or which is empty
    /// the first time. Call this before any kernel runs. It has no effect on backends without such data, or
    /// with data of another driver.
    pub fn use_pipelines(&mut self, data: &[u8]) {
        if !self.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return;
        }
        let data = Some(data).filter(|data| !data.is_empty());
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
        // SAFETY: the data came from `get_data`. Whoever stores it makes sure that it is unchanged
        // (`files/cache.rs` has a checksum), and wgpu compares adapter, driver and version.
        #[allow(unsafe_code)]
        let cache = unsafe { self.device.create_pipeline_cache(&descriptor) };
        self.pipeline_cache = Some(cache);
    }

    /// The pipelines compiled so far, in the driver's own format; `None` if the driver provides none.
    pub fn pipelines(&self) -> Option<Vec<u8>> {
        self.pipeline_cache.as_ref()?.get_data()
    }

    pub(crate) fn pipeline_cache(&self) -> Option<&wgpu::PipelineCache> {
        self.pipeline_cache.as_ref()
    }

    /// The variant that was measured to be the fastest for a shape class.
    pub(crate) fn tuned(&self, class: impl FnOnce() -> String) -> Option<&str> {
        Some(self.tuning.as_ref()?.choices.get(&class())?.variant.as_str())
    }

    /// Lanes of a subgroup, if the device was opened with subgroups and all of them have the same size.
    pub fn subgroup(&self) -> Option<usize> {
        let (least, most) = self.summary.subgroup_size?;
        let open = has_subgroups(self.device.features());
        (open && least == most).then_some(least as usize)
    }

    pub(super) fn profiler(&self) -> Option<&Profiler> {
        self.profiler.as_ref()
    }

    /// The time of each kernel since the last call, over all work that [`Gpu::finished`] has waited for.
    /// `None` if the device was not opened with [`Options::profile`] or has no timestamps.
    pub fn kernel_times(&self) -> Option<Vec<KernelTime>> {
        self.profiler.as_ref().map(Profiler::take)
    }

    /// Waits for everything submitted so far.
    ///
    /// # Errors
    /// [`Error::Gpu`] for anything that the device has reported, [`Error::DeviceLost`] when it is lost.
    pub async fn finished(&self) -> Result<()> {
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.poller.wait_for(None);
        let _ = receiver.await;
        self.check("waiting for the device")
    }

    /// The wgpu device.
    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(super) fn sentinel(&self) -> &Sentinel {
        &self.sentinel
    }

    pub(super) fn uniforms(&self) -> &wgpu::Buffer {
        &self.uniforms
    }

    /// The kernel named `key`. `make` compiles it just before its first run.
    pub(crate) fn kernel(
        &self,
        key: &str,
        make: impl Fn(&Gpu) -> Compiled + Send + Sync + 'static,
    ) -> Arc<Kernel> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(key) {
            return kernel.clone();
        }
        let kernel = Arc::new(Kernel::new(key, Box::new(make)));
        kernels.insert(key.to_string(), kernel.clone());
        kernel
    }

    /// Fails with the first error reported since the last check, if any. Once the device is lost, it always
    /// fails.
    pub fn check(&self, doing: &str) -> Result<()> {
        if let Some(error) = self.memory.refused() {
            return Err(error);
        }
        let mut reports = locked(&self.reports);
        if let Some(error) = reports.found.take() {
            return Err(error);
        }
        if let Some(message) = reports.lost.clone() {
            return Err(Error::DeviceLost { doing: doing.into(), message });
        }
        // The first report is the cause; the rest mostly follow from it.
        match std::mem::take(&mut reports.messages).into_iter().next() {
            None => Ok(()),
            Some(message) => Err(Error::Gpu { doing: doing.into(), message }),
        }
    }

    /// Submits recorded commands. `uniforms` are their parameter blocks, if a sentinel's dispatch ends them;
    /// its own block is added here. Adjusts the submit budget by how long the commands' estimated cost,
    /// `operations`, took.
    pub(super) fn submit(
        &self,
        encoder: wgpu::CommandEncoder,
        uniforms: Option<Vec<u8>>,
        operations: f64,
    ) -> Submitted {
        let (lost, dropped) = self.faults.of_submit();
        if lost {
            // As in a driver reset, work in flight never completes.
            self.lose("on purpose (AWEIGH_FAULTS)".into());
            self.device.destroy();
        }
        let commands = Some(encoder.finish()).filter(|_| !dropped);
        let submitted = Instant::now();
        let (index, submits) = {
            let mut submits = self.submits.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mut uniforms) = uniforms {
                *submits = submits.wrapping_add(1);
                uniforms.extend(submits.to_le_bytes());
                // Writes are ordered with submits, so one buffer serves all submits in turn.
                self.queue.write_buffer(&self.uniforms, 0, &uniforms);
            }
            (self.queue.submit(commands), *submits)
        };
        if operations > 0.0 {
            let pace = self.pace.clone();
            self.queue.on_submitted_work_done(move || pace.finished(operations, submitted));
            self.wait_for(&index);
            if self.background {
                // Wait until this submit is done, so that the GPU is free during the sleep. The next readback
                // reports a lost device.
                let submission_index = Some(index.clone());
                let _ = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
                std::thread::sleep(Duration::from_secs_f64(BACKGROUND_SECONDS / 2.0));
            }
        }
        Submitted { index, submits }
    }

    /// How many dispatches were recorded so far. A kernel that was divided counts as several.
    pub fn dispatches(&self) -> u64 {
        self.dispatches.load(Ordering::Relaxed)
    }

    pub(super) fn count_dispatch(&self) {
        self.dispatches.fetch_add(1, Ordering::Relaxed);
    }

    /// Estimated operations that fit in one submit.
    pub(super) fn submit_budget(&self) -> f64 {
        self.pace.budget()
    }

    /// Makes the poller's thread deliver the callbacks of a submit as soon as the submit is finished.
    pub(super) fn wait_for(&self, submit: &wgpu::SubmissionIndex) {
        self.poller.wait_for(Some(submit.clone()));
    }
}

/// Tensors are allocated in the device's memory.
impl Deref for Gpu {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}
