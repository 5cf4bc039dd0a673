//! Device time of each kernel, from timestamp queries around every dispatch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The most dispatches in one submit. It sets the size of the device's uniform buffer.
pub(super) const MAX_DISPATCHES: u64 = 1024;

/// The time that all dispatches of one kernel took.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct KernelTime {
    /// The kernel's variant.
    pub kernel: String,
    /// Number of dispatches.
    pub calls: u64,
    /// Seconds from the first to the last timestamp of each dispatch, summed.
    pub seconds: f64,
}

type Times = Arc<Mutex<BTreeMap<String, (u64, f64)>>>;

/// Collects kernel times on a device that was opened for profiling. Every dispatch gets a compute pass of its
/// own. This adds time between kernels, not to the kernels.
pub(super) struct Profiler {
    /// Seconds per timestamp tick.
    tick: f64,
    times: Times,
}

/// The timestamps of the commands being recorded.
pub(super) struct Marks {
    set: wgpu::QuerySet,
    kernels: Vec<String>,
}

impl Profiler {
    pub fn new(queue: &wgpu::Queue) -> Self {
        Self { tick: f64::from(queue.get_timestamp_period()) * 1e-9, times: Times::default() }
    }

    /// The times measured since the last call, longest first.
    pub fn take(&self) -> Vec<KernelTime> {
        let times = std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all: Vec<KernelTime> = times
            .into_iter()
            .map(|(kernel, (calls, seconds))| KernelTime { kernel, calls, seconds })
            .collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all
    }

    /// Reads the timestamps back once the commands are finished. Call this before the encoder is finished,
    /// and call the closure that it returns after the submit.
    pub fn resolve(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        marks: Marks,
    ) -> impl FnOnce() + use<> {
        let bytes = 16 * marks.kernels.len() as u64;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let read = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        encoder.resolve_query_set(&marks.set, 0..2 * marks.kernels.len() as u32, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, bytes);
        let (times, tick) = (self.times.clone(), self.tick);
        move || {
            let mapped = read.clone();
            read.map_async(wgpu::MapMode::Read, .., move |result| {
                let Ok(view) =
                    result.and_then(|()| mapped.get_mapped_range(..).map_err(|_| wgpu::BufferAsyncError))
                else {
                    return;
                };
                let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
                let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                for (kernel, pair) in marks.kernels.iter().zip(ticks.chunks_exact(2)) {
                    let entry = times.entry(kernel.clone()).or_default();
                    entry.0 += 1;
                    entry.1 += pair[1].saturating_sub(pair[0]) as f64 * tick;
                }
            });
        }
    }
}

impl Marks {
    pub fn new(device: &wgpu::Device) -> Self {
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * MAX_DISPATCHES as u32,
        });
        Self { set, kernels: Vec::new() }
    }

    /// The timestamp writes for the pass of the next dispatch.
    pub fn next(&mut self, kernel: &str) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * self.kernels.len() as u32;
        self.kernels.push(kernel.to_string());
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }
}
