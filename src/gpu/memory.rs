//! Allocates buffers. A ledger records each of them with its purpose, so that memory peaks are known. On
//! paper, buffers are only recorded in the ledger: a run is planned with the same code that allocates for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::Faults;
use super::kernel::BindGroups;
use super::recorder::UNIFORM_BYTES;
use super::sentinel::Sentinel;
use crate::{Error, Result};

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Frozen weights, as loaded.
    Weights,
    /// Trainable parameters: adapters, or all weights in full fine-tuning.
    Trainable,
    /// Adapter snapshots that serve as references.
    References,
    /// Gradients of trainable parameters.
    Gradients,
    /// AdamW's two moments.
    Moments,
    /// Values that the forward pass keeps for the backward pass, and scratch space.
    Activations,
    /// One chunk of logits.
    Logits,
    /// Keys and values of a sampler.
    KvCache,
    /// Token tables, uniforms, reduction partials and readback copies.
    Staging,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Trainable => "trainable",
            Self::References => "references",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Activations => "activations",
            Self::Logits => "logits chunk",
            Self::KvCache => "KV cache",
            Self::Staging => "staging",
        })
    }
}

/// Bytes allocated now and at the peak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Bytes allocated now.
    pub now: u64,
    /// The most bytes allocated at once, since the start or the last [`Ledger::restart_peaks`].
    pub peak: u64,
}

#[derive(Default)]
struct Book {
    total: Usage,
    by_purpose: BTreeMap<Purpose, Usage>,
}

/// Counts the bytes of all live buffers of one device.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters `bytes`. The entry is removed when the returned guard is dropped.
    pub(super) fn enter(&self, purpose: Purpose, bytes: u64) -> Entry {
        let mut book = self.book();
        let book = &mut *book;
        for usage in [&mut book.total, book.by_purpose.entry(purpose).or_default()] {
            usage.now += bytes;
            usage.peak = usage.peak.max(usage.now);
        }
        Entry { ledger: self.clone(), purpose, bytes }
    }

    /// Usage of all buffers together.
    pub fn total(&self) -> Usage {
        self.book().total
    }

    /// Resets the peaks to the current usage.
    pub fn restart_peaks(&self) {
        let mut book = self.book();
        let book = &mut *book;
        for usage in std::iter::once(&mut book.total).chain(book.by_purpose.values_mut()) {
            usage.peak = usage.now;
        }
    }

    /// Usage for each purpose. The peaks need not have occurred at the same time.
    pub fn by_purpose(&self) -> BTreeMap<Purpose, Usage> {
        self.book().by_purpose.clone()
    }
}

/// The most bytes of writes that may wait in staging memory before a submit.
const STAGED_BYTES: usize = 64 << 20;
/// Bytes that one binding may have on every adapter: WebGPU's default `max_storage_buffer_binding_size`.
pub const DEFAULT_BINDING: u64 = 128 << 20;

/// Memory for tensors: a device's memory, or memory on paper, which only counts bytes.
pub struct Memory {
    device: Option<(wgpu::Device, wgpu::Queue)>,
    max_binding: u64,
    ledger: Ledger,
    bind_groups: Arc<BindGroups>,
    /// Number of buffers made so far, which is the number of the next one.
    buffers: Arc<AtomicU64>,
    /// Bytes written since [`Memory::write`] last submitted to free staging memory.
    waiting: AtomicUsize,
    /// The submit of the last [`Memory::keep_pace`].
    last: Mutex<Option<wgpu::SubmissionIndex>>,
    /// What [`Memory::refused`] gives.
    refused: Arc<Mutex<Option<Error>>>,
    faults: Faults,
}

impl Memory {
    /// A device's memory. Its tensors take at most `max_binding` bytes each.
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, max_binding: u64, faults: Faults) -> Self {
        Self { device: Some((device.clone(), queue.clone())), faults, ..Self::paper(max_binding) }
    }

    /// Memory on paper, without a device. Its tensors cannot be bound, read or copied, and writes to them do
    /// nothing. The ledger starts with the same entry as a device's ledger.
    pub fn on_paper(max_binding: u64) -> Self {
        let paper = Self::paper(max_binding);
        std::mem::forget(paper.ledger.enter(Purpose::Staging, UNIFORM_BYTES));
        std::mem::forget(Sentinel::new(&paper).expect("memory on paper is never full"));
        paper
    }

    /// The same memory with another ledger, for tensors that are soon dropped and belong to no run.
    pub(crate) fn apart(&self) -> Self {
        Self {
            device: self.device.clone(),
            bind_groups: self.bind_groups.clone(),
            buffers: self.buffers.clone(),
            refused: self.refused.clone(),
            ..Self::paper(self.max_binding)
        }
    }

    fn paper(max_binding: u64) -> Self {
        Self {
            device: None,
            max_binding,
            ledger: Ledger::default(),
            bind_groups: Arc::default(),
            buffers: Arc::default(),
            waiting: AtomicUsize::new(0),
            last: Mutex::default(),
            refused: Arc::default(),
            faults: Faults::default(),
        }
    }

    /// Whether this is memory on paper, without a device.
    pub fn is_paper(&self) -> bool {
        self.device.is_none()
    }

    /// The most bytes that a tensor may have.
    pub fn max_binding(&self) -> u64 {
        self.max_binding
    }

    /// The memory ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn bind_groups(&self) -> &Arc<BindGroups> {
        &self.bind_groups
    }

    /// A number that no other buffer has.
    pub(super) fn number_buffer(&self) -> u64 {
        self.buffers.fetch_add(1, Ordering::Relaxed)
    }

    /// A zeroed buffer for shaders; `None` on paper.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn buffer(&self, label: &str, purpose: Purpose, bytes: u64) -> Result<Option<wgpu::Buffer>> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        self.device
            .as_ref()
            .map(|(device, _)| self.allocate(device, (label, purpose), bytes, usage))
            .transpose()
    }

    /// A buffer on `device` that the host can read.
    ///
    /// # Errors
    /// As [`Memory::buffer`].
    pub(super) fn readback(&self, device: &wgpu::Device, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        self.allocate(device, ("readback", Purpose::Staging), bytes, usage)
    }

    /// Allocates a buffer. All tensors and readback buffers are allocated here.
    fn allocate(
        &self,
        device: &wgpu::Device,
        (label, purpose): (&str, Purpose),
        size: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let buffer = device.create_buffer(&descriptor);
        let (label, purpose, held) = (label.into(), purpose.to_string(), self.ledger.total().now);
        let full = Error::OutOfMemory { label, purpose, bytes: size, held };
        if self.faults.fails_allocation() {
            return Err(full);
        }
        scoped(scope, full, &self.refused)?;
        Ok(buffer)
    }

    /// The first allocation that the device refused after it seemed to succeed. Browsers tell later whether
    /// there was enough memory.
    pub(super) fn refused(&self) -> Option<Error> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Blocks until the device has finished the work submitted before the previous call, so that at most two
    /// portions of writes are in staging memory.
    pub(super) fn keep_pace(&self) {
        let Some((device, queue)) = &self.device else { return };
        let now = queue.submit([]);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = last.replace(now) {
            let wait = wgpu::PollType::Wait { submission_index: Some(earlier), timeout: None };
            if let Err(error) = device.poll(wait) {
                log::warn!("waiting for the device: {error}");
            }
        }
    }

    /// Writes `bytes` into `buffer` at `offset`, in order with the submits.
    pub(super) fn write(&self, buffer: Option<&wgpu::Buffer>, offset: u64, bytes: &[u8]) {
        let (Some((_, queue)), Some(buffer)) = (&self.device, buffer) else { return };
        queue.write_buffer(buffer, offset, bytes);
        // Writes stay in staging memory until a submit. Without this one, a model's weights would be in
        // memory twice.
        let waiting = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > STAGED_BYTES {
            self.waiting.store(0, Ordering::Relaxed);
            queue.submit([]);
        }
    }
}

/// Closes the scope of an allocation.
///
/// # Errors
/// `full` if the device was out of memory.
#[cfg(not(target_arch = "wasm32"))]
fn scoped(scope: wgpu::ErrorScopeGuard, full: Error, _: &Arc<Mutex<Option<Error>>>) -> Result<()> {
    // The result is ready at once, so this does not wait.
    pollster::block_on(scope.pop()).map_or(Ok(()), |_| Err(full))
}

/// Closes the scope of an allocation. If the device was out of memory, `refused` gets `full` later.
#[cfg(target_arch = "wasm32")]
fn scoped(scope: wgpu::ErrorScopeGuard, full: Error, refused: &Arc<Mutex<Option<Error>>>) -> Result<()> {
    let (told, refused) = (scope.pop(), refused.clone());
    wasm_bindgen_futures::spawn_local(async move {
        if told.await.is_some() {
            refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(full);
        }
    });
    Ok(())
}

/// One live buffer in the ledger.
pub(super) struct Entry {
    ledger: Ledger,
    purpose: Purpose,
    bytes: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.ledger.book();
        book.total.now -= self.bytes;
        if let Some(usage) = book.by_purpose.get_mut(&self.purpose) {
            usage.now -= self.bytes;
        }
    }
}

const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/// A byte count as a person reads it: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let step = (1..UNITS.len()).rev().find(|step| count >> (10 * step) > 0).unwrap_or(0);
    if step == 0 {
        format!("{count} bytes")
    } else {
        format!("{:.1} {}", count as f64 / (1u64 << (10 * step)) as f64, UNITS[step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_stay_and_entries_leave() {
        let ledger = Ledger::default();
        let first = ledger.enter(Purpose::Weights, 100);
        drop(ledger.enter(Purpose::Logits, 50));
        assert_eq!(ledger.total(), Usage { now: 100, peak: 150 });
        drop(first);
        assert_eq!(ledger.total(), Usage { now: 0, peak: 150 });
        assert_eq!(ledger.by_purpose()[&Purpose::Logits], Usage { now: 0, peak: 50 });
        ledger.restart_peaks();
        assert_eq!(ledger.total(), Usage::default());
    }
}
