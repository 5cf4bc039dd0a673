//! Adapter choice, the device, its limits and its error reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use super::kernel::{BindGroups, Compiled, Kernel};
use super::memory::{Ledger, Purpose};
use super::profile::{KernelTime, Profiler};
use super::recorder::UNIFORM_BYTES;
use super::tuning::Tuning;
use crate::{Error, Result};

/// Which kernels suit the adapter. All tiers compute the same functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Real GPUs: tiles in workgroup memory, WebGPU's default limits, no features.
    Portable,
    /// Software rasterizers: no barriers, large register blocks.
    Software,
}

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An index from [`list_adapters`] or a part of an adapter's name; `None` takes the fastest kind.
    pub adapter: Option<String>,
    /// Ask for WebGPU's default limits and no features even where the adapter grants more.
    pub default_limits: bool,
    /// Seconds that one submit should take; `None` is [`SUBMIT_SECONDS`].
    pub submit_seconds: Option<f64>,
    /// Overrides the tier that the adapter's kind suggests.
    pub tier: Option<Tier>,
    /// Measure the time of every kernel, where the adapter has timestamps: see [`Gpu::kernel_times`].
    pub profile: bool,
}

/// One adapter as `aweigh devices` lists it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AdapterSummary {
    /// Position in the list; what `--gpu N` takes.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// `Vulkan`, `Metal`, `Dx12`...
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `Cpu`...
    pub kind: String,
    /// Driver name and version.
    pub driver: String,
    /// Largest storage binding in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Smallest and largest subgroup size, where subgroups exist.
    pub subgroup_size: Option<(u32, u32)>,
    /// Whether shaders may compute in f16.
    pub shader_f16: bool,
    /// Which kernels it would get.
    pub tier: Tier,
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // The GL backend lacks what the engine needs on most drivers; Vulkan, Metal, DX12 and the browser remain.
    descriptor.backends &= wgpu::Backends::PRIMARY;
    wgpu::Instance::new(descriptor)
}

async fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut found = instance.enumerate_adapters(wgpu::Backends::all()).await;
    // Fastest kind first; the driver's own order within a kind.
    found.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    found
}

fn tier_of(info: &wgpu::AdapterInfo) -> Tier {
    if info.device_type == wgpu::DeviceType::Cpu { Tier::Software } else { Tier::Portable }
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    AdapterSummary {
        index,
        tier: tier_of(&info),
        backend: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        subgroup_size: features
            .contains(wgpu::Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size)),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        name: info.name,
    }
}

/// All adapters on this machine, the fastest kind first.
pub async fn list_adapters() -> Vec<AdapterSummary> {
    adapters(&instance()).await.iter().enumerate().map(|(i, a)| summary(i, a)).collect()
}

/// Work per submit, so that none runs past an operating system's watchdog.
struct Pace {
    /// Estimated operations that fit a submit.
    budget: f64,
    /// Seconds that a submit should take.
    aim: f64,
    /// When the last finished submit ended.
    last_done: Option<Instant>,
}

/// The aim for one submit. Windows resets a GPU after 2 s, and a display must be drawn in between.
pub const SUBMIT_SECONDS: f64 = 0.2;

/// Bytes of writes that may wait in staging memory.
const STAGED_BYTES: usize = 64 << 20;

/// An open device with its queue, limits, compiled kernels and memory ledger.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    summary: AdapterSummary,
    limits: wgpu::Limits,
    tier: Tier,
    ledger: Ledger,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
    bind_groups: Arc<BindGroups>,
    /// Buffers made so far: the next one's number.
    buffers: AtomicU64,
    /// Parameter blocks of the submit at hand; locked from the write to the submit, so that threads do not mix theirs.
    uniforms: wgpu::Buffer,
    submitting: Mutex<()>,
    /// Bytes written since the last submit that was made for their sake.
    waiting: AtomicUsize,
    reports: Arc<Mutex<Vec<String>>>,
    pace: Arc<Mutex<Pace>>,
    poller: Poller,
    profiler: Option<Profiler>,
    pipeline_cache: Option<wgpu::PipelineCache>,
    tuning: Option<Tuning>,
}

impl Gpu {
    /// Opens the adapter that `options` names, or the fastest one.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, or none of that name.
    pub async fn open(options: &Options) -> Result<Self> {
        let found = adapters(&instance()).await;
        let index = choose(&found, options.adapter.as_deref())?;
        let adapter = &found[index];
        let mut limits = wgpu::Limits::default();
        if !options.default_limits {
            limits.max_buffer_size = adapter.limits().max_buffer_size;
            limits.max_storage_buffer_binding_size = adapter.limits().max_storage_buffer_binding_size;
        }
        let summary = summary(index, adapter);
        let mut wanted = wgpu::Features::empty();
        wanted.set(wgpu::Features::TIMESTAMP_QUERY, options.profile);
        wanted.set(wgpu::Features::SUBGROUP, !options.default_limits);
        wanted.set(wgpu::Features::PIPELINE_CACHE, !options.default_limits);
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("aweigh"),
                required_features: wanted & adapter.features(),
                required_limits: limits.clone(),
                ..Default::default()
            })
            .await
            .map_err(|e| Error::NoAdapter {
                found: format!("{} would not open: {e}", summary.name),
                fix: "update its driver, or choose another adapter with --gpu (`aweigh devices` lists them)"
                    .into(),
            })?;
        log::info!("adapter {} ({}, {})", summary.name, summary.backend, summary.driver);
        Ok(Self::with_device(device, queue, summary, limits, options))
    }

    fn with_device(
        device: wgpu::Device,
        queue: wgpu::Queue,
        summary: AdapterSummary,
        limits: wgpu::Limits,
        options: &Options,
    ) -> Self {
        let aim = options.submit_seconds.unwrap_or(SUBMIT_SECONDS);
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
        }));
        let sink = reports.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                let report = format!("the device was lost: {message}");
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(report);
            }
        });
        let ledger = Ledger::default();
        let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("uniforms"),
            size: UNIFORM_BYTES,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        std::mem::forget(ledger.enter(Purpose::Staging, UNIFORM_BYTES));
        let budget = match summary.tier {
            Tier::Software => 1e9,
            Tier::Portable => 2e10,
        };
        let timestamps = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        Self {
            poller: Poller::new(device.clone()),
            profiler: timestamps.then(|| Profiler::new(&queue)),
            tier: options.tier.unwrap_or(summary.tier),
            pipeline_cache: None,
            tuning: None,
            device,
            queue,
            summary,
            limits,
            ledger,
            kernels: Mutex::default(),
            bind_groups: Arc::default(),
            buffers: AtomicU64::new(0),
            uniforms,
            submitting: Mutex::default(),
            waiting: AtomicUsize::new(0),
            reports,
            pace: Arc::new(Mutex::new(Pace { budget, aim, last_done: None })),
        }
    }

    /// The adapter's description.
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// Which kernels this device runs.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Takes its kernels by what was measured, from now on. Measurements of another adapter, driver or version are left
    /// alone; returns whether these are taken.
    pub fn use_tuning(&mut self, tuning: Tuning) -> bool {
        let own = tuning.is_of(&self.summary);
        if own {
            self.tuning = Some(tuning);
        }
        own
    }

    /// Takes compiled pipelines from `data`, which [`Gpu::pipelines`] gave at an earlier time; empty at first. To be called
    /// before anything runs. Backends that keep no such data, and data of another driver, change nothing.
    pub fn use_pipelines(&mut self, data: &[u8]) {
        if !self.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return;
        }
        let data = Some(data).filter(|data| !data.is_empty());
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
        // SAFETY: the data came from `get_data`; whoever keeps it sees to it that it is as it was (`files/cache.rs` has a
        // checksum), and wgpu compares adapter, driver and version.
        #[allow(unsafe_code)]
        let cache = unsafe { self.device.create_pipeline_cache(&descriptor) };
        self.pipeline_cache = Some(cache);
    }

    /// The pipelines compiled so far, in the driver's own form; `None` where it gives none.
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

    /// Lanes of a subgroup, where the device was opened with subgroups and they all have one size.
    pub fn subgroup(&self) -> Option<usize> {
        let (least, most) = self.summary.subgroup_size?;
        let open = self.device.features().contains(wgpu::Features::SUBGROUP);
        (open && least == most).then_some(least as usize)
    }

    /// The limits the device was opened with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// The memory ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn profiler(&self) -> Option<&Profiler> {
        self.profiler.as_ref()
    }

    /// The time of each kernel since the last call, of all work that [`Gpu::finished`] has waited for. `None` where the
    /// device was not opened with [`Options::profile`] or has no timestamps.
    pub fn kernel_times(&self) -> Option<Vec<KernelTime>> {
        self.profiler.as_ref().map(Profiler::take)
    }

    /// Waits for everything submitted so far.
    ///
    /// # Errors
    /// [`Error::Gpu`] for anything the device has reported.
    pub async fn finished(&self) -> Result<()> {
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.wake_poller();
        let _ = receiver.await;
        self.check("waiting for the device")
    }

    /// The wgpu device, for the shader module.
    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(super) fn uniforms(&self) -> &wgpu::Buffer {
        &self.uniforms
    }

    /// The kernel named `key`, which `make` will compile before it first runs.
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

    pub(super) fn bind_groups(&self) -> &Arc<BindGroups> {
        &self.bind_groups
    }

    /// A number that no other buffer of this device has.
    pub(super) fn number_buffer(&self) -> u64 {
        self.buffers.fetch_add(1, Ordering::Relaxed)
    }

    /// Fails with what the device has reported since the last check, if anything.
    pub fn check(&self, doing: &str) -> Result<()> {
        let reports = std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner));
        // The first report is the cause; the rest mostly follow from it.
        match reports.into_iter().next() {
            None => Ok(()),
            Some(message) => Err(Error::Gpu { doing: doing.into(), message }),
        }
    }

    /// Submits recorded commands with their parameter blocks, and learns from how long their estimated cost,
    /// `operations`, took.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder, uniforms: &[u8], operations: f64) {
        let commands = encoder.finish();
        let submitted = Instant::now();
        {
            let _one_at_a_time = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
            if !uniforms.is_empty() {
                // Writes are ordered with submits, so one buffer serves all submits in turn.
                self.queue.write_buffer(&self.uniforms, 0, uniforms);
            }
            self.queue.submit([commands]);
        }
        if operations > 0.0 {
            let pace = self.pace.clone();
            self.queue.on_submitted_work_done(move || {
                let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let began = pace.last_done.map_or(submitted, |last| last.max(submitted));
                let fits = operations * pace.aim / (now - began).as_secs_f64().max(1e-4);
                // Move halfway to what this submit suggests, and never by more than a factor of two at once.
                pace.budget =
                    (0.5 * (pace.budget + fits)).clamp(pace.budget * 0.5, pace.budget * 2.0).max(1e7);
                pace.last_done = Some(now);
            });
            self.wake_poller();
        }
    }

    /// Writes `bytes` into `buffer` at `offset`, in order with the submits.
    pub(super) fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        self.queue.write_buffer(buffer, offset, bytes);
        // Until a submit, writes wait in staging memory: a model's weights would be there twice.
        let waiting = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > STAGED_BYTES {
            self.waiting.store(0, Ordering::Relaxed);
            self.queue.submit([]);
        }
    }

    /// Estimated operations that one submit may hold.
    pub(super) fn submit_budget(&self) -> f64 {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).budget
    }

    /// Has callbacks of finished work delivered, on the poller's thread.
    pub(super) fn wake_poller(&self) {
        self.poller.wake();
    }
}

/// A thread that waits for the device, so that no caller has to: readbacks are plain futures.
struct Poller {
    requests: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    fn new(device: wgpu::Device) -> Self {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while receiver.recv().is_ok() {
                // One wait serves all requests so far.
                while receiver.try_recv().is_ok() {}
                if let Err(error) = device.poll(wgpu::PollType::wait_indefinitely()) {
                    log::warn!("waiting for the device: {error}");
                }
            }
        });
        Self { requests: Some(sender), thread: Some(thread) }
    }

    fn wake(&self) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(());
        }
    }
}

impl Drop for Poller {
    /// The thread holds the device too. Were it left to itself, it could still be closing the device while the process
    /// ends, and drivers crash when their libraries go first (llvmpipe did, in one run of twenty).
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn choose(found: &[wgpu::Adapter], wanted: Option<&str>) -> Result<usize> {
    if found.is_empty() {
        return Err(Error::no_gpu());
    }
    let Some(wanted) = wanted else { return Ok(0) };
    let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
    let by_index = wanted.parse().ok().filter(|&i: &usize| i < found.len());
    let by_name = || names.iter().position(|n| n.to_lowercase().contains(&wanted.to_lowercase()));
    by_index.or_else(by_name).ok_or_else(|| Error::NoAdapter {
        found: format!("no adapter matches \"{wanted}\"; there are: {}", names.join(", ")),
        fix: "give an index or a part of a name as `aweigh devices` lists them".into(),
    })
}
