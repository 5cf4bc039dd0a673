//! A typed, cheaply cloned view of a GPU buffer.

use std::ops::Range;
use std::sync::Arc;

use super::kernel::BindGroups;
use super::memory::{Entry, Memory, Purpose};
use super::recorder::Command;
use super::sentinel::Sentinel;
use super::{Gpu, Recorder};
use crate::{Error, Result};

/// Bindings must start at a multiple of this many bytes (WebGPU's default
/// `min_storage_buffer_offset_alignment`).
const ALIGN: u64 = 256;

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16; two in a `u32`, unpacked in the kernels.
    Bf16,
    /// IEEE half precision; two in a `u32`, unpacked in the kernels.
    F16,
    /// 32-bit unsigned integers, for indices and tables.
    U32,
    /// 4-bit codes; blocks of 32 with an f16 scale and an f16 minimum: ggml's Q4_0 and Q4_1.
    Q4,
    /// 8-bit signed codes; blocks of 32 with an f16 scale and an f16 minimum: ggml's Q8_0, Q5_0 and Q5_1.
    Q8,
    /// 4-bit codes; blocks of 32 with an 8-bit scale and an 8-bit minimum, and for 256 elements an f16 factor
    /// on the scales and one on the minima: ggml's Q4_K.
    Q4K,
    /// As [`DType::Q4K`] with 8-bit codes: ggml's Q5_K.
    Q5K,
    /// 8-bit signed codes; blocks of 16 with a signed 8-bit scale, and for 256 elements an f16 factor on the
    /// scales: ggml's Q6_K.
    Q6K,
    /// 4-bit codes for the quantiles of a normal distribution; blocks of 32 with an f16 scale.
    Nf4,
}

impl DType {
    /// The quantised types.
    pub const QUANTISED: [Self; 6] = [Self::Q4, Self::Q8, Self::Q4K, Self::Q5K, Self::Q6K, Self::Nf4];

    /// Bytes of `count` elements. For quantised types `count` is a multiple of [`DType::block`].
    pub fn size(self, count: usize) -> usize {
        match self {
            Self::F32 | Self::U32 => 4 * count,
            Self::Bf16 | Self::F16 => 2 * count,
            quantised => quantised.regions(count).iter().sum(),
        }
    }

    /// Elements that share a scale and cannot be separated; 1 for types that are not quantised.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::U32 | Self::Bf16 | Self::F16 => 1,
            Self::Q4 | Self::Q8 | Self::Nf4 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Whether the elements are codes in blocks.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }

    /// Bytes of the codes, the scales and the scales of scales of `count` quantised elements, each a multiple
    /// of 4.
    pub(crate) fn regions(self, count: usize) -> [usize; 3] {
        match self {
            Self::F32 | Self::U32 | Self::Bf16 | Self::F16 => [self.size(count), 0, 0],
            Self::Q4 => [count / 2, count / 8, 0],
            Self::Q8 => [count, count / 8, 0],
            Self::Q4K => [count / 2, count / 16, count / 64],
            Self::Q5K | Self::Q6K => [count, count / 16, count / 64],
            Self::Nf4 => [count / 2, (count / 16).next_multiple_of(4), 0],
        }
    }

    /// The index of the first 4-byte word of the scales, and of the scales of scales, of `count` elements:
    /// the kernels' `w_scales` and `w_supers`.
    pub(crate) fn scale_words(self, count: usize) -> [u32; 2] {
        if !self.is_quantised() {
            return [0, 0];
        }
        let [codes, scales, _] = self.regions(count);
        [codes as u32 / 4, (codes + scales) as u32 / 4]
    }
}

struct Storage {
    /// `None` for memory on paper.
    buffer: Option<wgpu::Buffer>,
    _entry: Entry,
    number: u64,
    bind_groups: Arc<BindGroups>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.bind_groups.forget(self.number);
    }
}

/// `len` elements of `dtype` in a GPU buffer. Cloning and slicing share the buffer.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    byte_offset: u64,
    len: usize,
    dtype: DType,
}

impl Tensor {
    /// Bytes that [`Tensor::read_in_pieces`] reads at a time.
    pub const PIECE: usize = 512 << 10;
    /// Bytes that each readback takes besides those that are asked for.
    pub const READBACK_EXTRA: usize = 4;

    /// A new zeroed tensor.
    ///
    /// # Errors
    /// When the tensor is larger than one storage binding may be on this device; [`Error::OutOfMemory`].
    pub fn new(memory: &Memory, purpose: Purpose, label: &str, len: usize, dtype: DType) -> Result<Self> {
        let wanted = dtype.size(len) as u64;
        let bytes = wanted.next_multiple_of(ALIGN).max(ALIGN);
        let most = memory.max_binding();
        if wanted > most {
            return Err(Error::input(
                format!("buffer \"{label}\" ({purpose})"),
                format!("at most {most} bytes, this adapter's limit for one binding"),
                format!("{wanted} bytes"),
                "lower the batch or chunk size, or use an adapter with larger limits (`aweigh devices`)",
            ));
        }
        let buffer = memory.buffer(label, purpose, bytes)?;
        let storage = Arc::new(Storage {
            buffer,
            _entry: memory.ledger().enter(purpose, bytes),
            number: memory.number_buffer(),
            bind_groups: memory.bind_groups().clone(),
        });
        Ok(Self { storage, byte_offset: 0, len, dtype })
    }

    /// A new f32 tensor holding `data`.
    pub fn from_f32(memory: &Memory, purpose: Purpose, label: &str, data: &[f32]) -> Result<Self> {
        let tensor = Self::new(memory, purpose, label, data.len(), DType::F32)?;
        tensor.write_bytes(memory, bytemuck::cast_slice(data));
        Ok(tensor)
    }

    /// A new u32 tensor holding `data`.
    pub fn from_u32(memory: &Memory, purpose: Purpose, label: &str, data: &[u32]) -> Result<Self> {
        let tensor = Self::new(memory, purpose, label, data.len(), DType::U32)?;
        tensor.write_bytes(memory, bytemuck::cast_slice(data));
        Ok(tensor)
    }

    /// A new tensor of `len` elements of `dtype` from their little-endian bytes. Quantised elements are laid
    /// out as in [`Blocks`](super::Blocks).
    pub fn from_bytes(
        memory: &Memory,
        purpose: Purpose,
        label: &str,
        bytes: &[u8],
        (len, dtype): (usize, DType),
    ) -> Result<Self> {
        assert_eq!(bytes.len(), dtype.size(len), "{label}: the bytes of {len} elements of {dtype:?}");
        let tensor = Self::new(memory, purpose, label, len, dtype)?;
        tensor.write_bytes(memory, bytes);
        Ok(tensor)
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The `len` elements from `start` on, as a view.
    ///
    /// # Panics
    /// When the range exceeds the tensor, or its elements are quantised: a bug in the caller. Binding a view
    /// to a kernel panics unless it starts at a multiple of 256 bytes.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(!self.dtype.is_quantised(), "a slice of quantised elements");
        let byte_offset = self.byte_offset + self.dtype.size(start) as u64;
        assert!(start + len <= self.len, "slice {start}..{} of a tensor of {}", start + len, self.len);
        Self { storage: self.storage.clone(), byte_offset, len, dtype: self.dtype }
    }

    /// Overwrites the start of the tensor with `data`, in order with the device's queue: commands submitted
    /// before see the old contents, commands submitted after the new.
    pub fn write_f32(&self, memory: &Memory, data: &[f32]) {
        self.write_bytes(memory, bytemuck::cast_slice(data));
    }

    /// As [`Tensor::write_f32`], for tables.
    pub fn write_u32(&self, memory: &Memory, data: &[u32]) {
        self.write_bytes(memory, bytemuck::cast_slice(data));
    }

    /// Overwrites the start of the tensor with `bytes`, laid out as for [`Tensor::from_bytes`]. Ordered with
    /// the queue as in [`Tensor::write_f32`].
    pub(crate) fn write_bytes(&self, memory: &Memory, bytes: &[u8]) {
        assert!(bytes.len() <= self.dtype.size(self.len), "write past a tensor's end");
        let whole = bytes.len() / 4 * 4;
        memory.write(self.storage.buffer.as_ref(), self.byte_offset, &bytes[..whole]);
        if whole < bytes.len() {
            let mut tail = [0; 4];
            tail[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            memory.write(self.storage.buffer.as_ref(), self.byte_offset + whole as u64, &tail);
        }
    }

    /// Reads all elements back as f32 (no conversion: the dtype must be F32). See [`Tensor::read_bytes`].
    pub fn read_f32<'g>(&self, gpu: &'g Gpu) -> impl Future<Output = Result<Vec<f32>>> + use<'g> {
        assert_eq!(self.dtype, DType::F32);
        let bytes = self.read_bytes(gpu);
        async { Ok(bytemuck::pod_collect_to_vec(&bytes.await?)) }
    }

    /// Reads all elements back as u32. See [`Tensor::read_bytes`].
    pub fn read_u32<'g>(&self, gpu: &'g Gpu) -> impl Future<Output = Result<Vec<u32>>> + use<'g> {
        assert_eq!(self.dtype, DType::U32);
        let bytes = self.read_bytes(gpu);
        async { Ok(bytemuck::pod_collect_to_vec(&bytes.await?)) }
    }

    /// Reads the tensor's bytes back, as they are after everything submitted so far. The copy is already
    /// submitted when this returns. To wait for the device only once, call this for several tensors before
    /// awaiting the first.
    ///
    /// # Errors
    /// [`Error::Gpu`] for anything the device has reported since the last read, [`Error::DeviceLost`],
    /// [`Error::OutOfMemory`].
    pub fn read_bytes<'g>(&self, gpu: &'g Gpu) -> impl Future<Output = Result<Vec<u8>>> + use<'g> {
        self.read_part(gpu, 0..self.dtype.size(self.len))
    }

    /// As [`Tensor::read_bytes`], but [`Tensor::PIECE`] bytes at a time. Bytes that are being read back are
    /// in memory twice, and a memory plan has no room for a second copy of the whole tensor.
    ///
    /// # Errors
    /// As [`Tensor::read_bytes`].
    pub async fn read_in_pieces(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        let all = self.dtype.size(self.len);
        let mut bytes = Vec::with_capacity(all);
        for start in (0..all).step_by(Self::PIECE) {
            bytes.extend(self.read_part(gpu, start..all.min(start + Self::PIECE)).await?);
        }
        Ok(bytes)
    }

    /// Reads the bytes of `range`, which starts at a multiple of 4.
    fn read_part<'g>(
        &self,
        gpu: &'g Gpu,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Vec<u8>>> + use<'g> {
        let wanted = range.len();
        let size = (wanted as u64).next_multiple_of(4);
        let start = self.byte_offset + range.start as u64;
        // The tensor's bytes, and the sentinel's number.
        let all = size + Self::READBACK_EXTRA as u64;
        let staging = gpu.readback(gpu.device(), all);
        let entry = gpu.ledger().enter(Purpose::Staging, all);
        let mut submits = 0;
        let (sender, receiver) = futures_channel::oneshot::channel();
        if let Ok(staging) = &staging {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(self.buffer(), start, staging, 0, size);
            encoder.copy_buffer_to_buffer(
                gpu.sentinel().ran().buffer(),
                0,
                staging,
                size,
                Self::READBACK_EXTRA as u64,
            );
            let submit = gpu.submit(encoder, None, 0.0);
            submits = submit.submits;
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                let _ = sender.send(result);
            });
            gpu.wait_for(&submit.index);
        }
        async move {
            let staging = staging?;
            let mapped = receiver.await;
            gpu.check("reading results back")?;
            // A browser tells that the device is lost after it has refused to read.
            let failed = |message: String| match cfg!(target_arch = "wasm32") {
                true => Error::DeviceLost { doing: "reading results back".into(), message },
                false => Error::Gpu { doing: "reading results back".into(), message },
            };
            mapped.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
            let view = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
            drop(entry);
            let (bytes, ran) = view.split_at(size as usize);
            Sentinel::check(gpu, bytemuck::pod_read_unaligned(ran), submits)?;
            Ok(bytes[..wanted].to_vec())
        }
    }

    /// Records a copy of all of `self` into the start of `target`.
    pub fn copy_to(&self, recorder: &mut Recorder, target: &Tensor) {
        assert!(self.dtype == target.dtype && self.len <= target.len, "copy into a tensor of another shape");
        let size = (self.dtype.size(self.len) as u64).next_multiple_of(4);
        recorder.push(Command::Copy { source: self.clone(), target: target.clone(), bytes: size });
    }

    /// Records zeroing of all elements.
    pub fn clear(&self, recorder: &mut Recorder) {
        let size = (self.dtype.size(self.len) as u64).next_multiple_of(4);
        recorder.push(Command::Clear { tensor: self.clone(), bytes: size });
    }

    /// Its buffer.
    ///
    /// # Panics
    /// When the memory is on paper: a bug in the caller.
    fn buffer(&self) -> &wgpu::Buffer {
        self.storage.buffer.as_ref().expect("a tensor on a device")
    }

    /// Its buffer, and the byte it starts at.
    pub(super) fn place(&self) -> (&wgpu::Buffer, u64) {
        (self.buffer(), self.byte_offset)
    }

    /// Its buffer's number, and the byte it starts at.
    pub(super) fn at(&self) -> [u64; 2] {
        [self.storage.number, self.byte_offset]
    }

    /// Its buffer's number, and the offset and size in bytes of the part that a shader sees.
    pub(super) fn view(&self) -> [u64; 3] {
        [self.storage.number, self.byte_offset, self.binding().size.map_or(0, u64::from)]
    }

    /// The bytes a shader may see: the elements, rounded up to a whole vec4.
    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        let offset = self.byte_offset;
        assert!(offset.is_multiple_of(ALIGN), "binding at byte {offset}, not a multiple of {ALIGN}");
        let size = (self.dtype.size(self.len) as u64).next_multiple_of(16).max(16);
        wgpu::BufferBinding {
            buffer: self.buffer(),
            offset: self.byte_offset,
            size: wgpu::BufferSize::new(size),
        }
    }
}
