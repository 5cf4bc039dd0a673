//! Records kernels and submits them in portions that are short enough for the operating system's GPU
//! watchdog.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kernel::{Kernel, compile};
use super::profile::{MAX_DISPATCHES, Marks};
use super::{Copied, Gpu, Seen, Slot, Tensor, Tier, texels};

/// Bytes between the parameter blocks of two dispatches (WebGPU's default
/// `min_uniform_buffer_offset_alignment`).
pub(crate) const UNIFORM_STRIDE: u64 = 256;
pub(super) const UNIFORM_BYTES: u64 = UNIFORM_STRIDE * MAX_DISPATCHES;
/// WebGPU's default `max_compute_workgroups_per_dimension`.
const MAX_GROUPS: u64 = 65_535;

/// A tensor bound to a kernel.
pub type Binding<'a> = &'a Tensor;

/// One recorded command.
pub(super) enum Command {
    /// Runs a kernel. `params` are the offset and size of its parameter block in bytes, `groups` the numbers
    /// of workgroups in two dimensions. `copies` are the parts of the tensors that it reads through textures.
    Dispatch {
        kernel: Arc<Kernel>,
        params: (u32, u64),
        bindings: Vec<Tensor>,
        copies: Vec<Option<Copied>>,
        groups: (u32, u32),
    },
    /// Copies `bytes` from the start of one tensor to the start of another.
    Copy { source: Tensor, target: Tensor, bytes: u64 },
    /// Zeroes the first `bytes`.
    Clear { tensor: Tensor, bytes: u64 },
}

/// Collects dispatches; submits them when their estimated cost reaches the device's budget, and at
/// [`Recorder::submit`].
pub struct Recorder<'g> {
    gpu: &'g Gpu,
    commands: Vec<Command>,
    uniforms: Vec<u8>,
    operations: f64,
}

impl<'g> Recorder<'g> {
    /// An empty recorder.
    pub fn new(gpu: &'g Gpu) -> Self {
        Self { gpu, commands: Vec::new(), uniforms: Vec::new(), operations: 0.0 }
    }

    /// The device it records for.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    pub(super) fn push(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// Records `groups` workgroups of `kernel`. `operations` is an estimate of its cost for the submit
    /// budget.
    ///
    /// When there are more workgroups than one dimension may have, they are spread over two. Shaders compute
    /// a flat index with `common/index.wgsl` and ignore surplus workgroups. When a GPU would take much longer
    /// than a submit may, they are several dispatches.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        kernel: &Arc<Kernel>,
        params: &P,
        bindings: &[Binding],
        groups: u64,
        operations: f64,
    ) {
        self.dispatch_with(kernel, params, (bindings, &[]), groups, operations);
    }

    /// As [`Recorder::dispatch`], for a kernel that reads some of its bindings through textures: `copies` are
    /// the parts of these that it reads; `None` if it will not read one in this call.
    pub(crate) fn dispatch_with<P: bytemuck::Pod>(
        &mut self,
        kernel: &Arc<Kernel>,
        params: &P,
        (bindings, copies): (&[Binding], &[Option<Copied>]),
        groups: u64,
        operations: f64,
    ) {
        if groups == 0 {
            return;
        }
        let gpu = self.gpu;
        let one = |recorder: &mut Self, first: u64, groups: u64, operations: f64| {
            gpu.count_dispatch();
            // The last block is the sentinel's.
            let full = recorder.uniforms.len() as u64 + 2 * UNIFORM_STRIDE > UNIFORM_BYTES;
            let spent = recorder.operations > 0.0 && recorder.operations + operations > gpu.submit_budget();
            if full || spent {
                recorder.submit();
            }
            let offset = recorder.uniforms.len();
            recorder.uniforms.extend_from_slice(bytemuck::bytes_of(params));
            recorder.uniforms.extend_from_slice(&(first as u32).to_le_bytes());
            recorder.uniforms.resize(offset + UNIFORM_STRIDE as usize, 0);
            let rows = groups.div_ceil(MAX_GROUPS);
            recorder.push(Command::Dispatch {
                kernel: kernel.clone(),
                params: (offset as u32, size_of::<P>() as u64 + 4),
                bindings: bindings.iter().map(|&tensor| tensor.clone()).collect(),
                copies: copies.to_vec(),
                groups: (groups.div_ceil(rows) as u32, rows as u32),
            });
            recorder.operations += operations.max(1.0);
        };
        let record = |recorder: &mut Self| {
            let budget = gpu.submit_budget();
            // No watchdog resets a software adapter, and every part would copy its operands again.
            if operations <= 2.0 * budget || groups == 1 || gpu.tier() == Tier::Software {
                return one(recorder, 0, groups, operations);
            }
            let parts = ((operations / budget).ceil() as u64).min(groups);
            // In one dimension, because surplus workgroups would do another part's work.
            let most = groups.div_ceil(parts).min(MAX_GROUPS);
            for first in (0..groups).step_by(most as usize) {
                let own = most.min(groups - first);
                one(recorder, first, own, operations * own as f64 / groups as f64);
            }
        };
        let Some(witness) = gpu.witness().filter(|witness| witness.wants(kernel.name())) else {
            return record(self);
        };
        self.submit();
        let writes = &kernel.compiled(gpu).writes;
        let params = bytemuck::bytes_of(params);
        let seen = Seen { kernel: kernel.name(), params, bindings, writes, operations };
        let mut run = || {
            record(self);
            self.submit();
        };
        if let Err(error) = witness.watch(gpu, &seen, &mut run) {
            gpu.report(error);
        }
    }

    /// Submits the commands recorded so far.
    ///
    /// # Panics
    /// When the number of a kernel's bindings differs from its shader's: a bug in the caller.
    pub fn submit(&mut self) {
        if self.commands.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.commands);
        self.compile(&commands);
        let mut encoding = Encoding::new(self.gpu);
        commands.into_iter().for_each(|command| encoding.add(command));
        encoding.submit(std::mem::take(&mut self.uniforms), self.operations);
        self.operations = 0.0;
    }

    /// For use after many writes: waits until the device has finished the work submitted before the previous
    /// call.
    pub(crate) fn keep_pace(&self) {
        self.gpu.keep_pace();
    }

    /// Compiles all kernels of the commands that are not compiled yet.
    fn compile(&self, commands: &[Command]) {
        let mut new: Vec<Arc<Kernel>> = Vec::new();
        for command in commands {
            let Command::Dispatch { kernel, .. } = command else { continue };
            if !kernel.is_compiled() && !new.iter().any(|known| Arc::ptr_eq(known, kernel)) {
                new.push(kernel.clone());
            }
        }
        if !new.is_empty() {
            compile(self.gpu, &new);
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.submit();
        }
    }
}

/// A command buffer that is being built.
struct Encoding<'g> {
    gpu: &'g Gpu,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    marks: Option<Marks>,
    /// The textures in use, which another encoding may replace with larger ones.
    textures: BTreeMap<Slot, wgpu::Texture>,
    /// What they hold: a tensor's buffer and place, and the copied part of it.
    held: BTreeMap<Slot, ([u64; 2], Copied)>,
}

impl<'g> Encoding<'g> {
    fn new(gpu: &'g Gpu) -> Self {
        let encoder = gpu.device().create_command_encoder(&Default::default());
        Self { gpu, encoder, pass: None, marks: None, textures: BTreeMap::new(), held: BTreeMap::new() }
    }

    fn add(&mut self, command: Command) {
        match command {
            Command::Dispatch {
                kernel,
                params: (offset, size),
                bindings,
                copies,
                groups: (columns, rows),
            } => {
                let compiled = kernel.compiled(self.gpu);
                let read = bindings.iter().zip(&compiled.slots).filter_map(|(t, slot)| Some((t, (*slot)?)));
                for ((tensor, slot), part) in read.zip(copies) {
                    if let Some(part) = part {
                        self.load(slot, tensor, part);
                    }
                }
                let textures: Vec<_> =
                    compiled.slots.iter().map(|slot| slot.map(|slot| self.texture(slot, 0))).collect();
                let group = self.gpu.bind_groups().of(self.gpu, &kernel, (&bindings, &textures), size);
                let written = bindings.iter().zip(&compiled.writes).filter(|(_, writes)| **writes);
                written.for_each(|(tensor, _)| self.changes(tensor));
                let pass = self.pass(kernel.name());
                pass.set_pipeline(&compiled.pipeline);
                pass.set_bind_group(0, &group, &[offset]);
                pass.dispatch_workgroups(columns, rows, 1);
            }
            Command::Copy { source, target, bytes } => {
                self.pass = None;
                self.changes(&target);
                let ((source, start), (target, to)) = (source.place(), target.place());
                self.encoder.copy_buffer_to_buffer(source, start, target, to, bytes);
            }
            Command::Clear { tensor, bytes } => {
                self.pass = None;
                self.changes(&tensor);
                let (buffer, start) = tensor.place();
                self.encoder.clear_buffer(buffer, start, Some(bytes));
            }
        }
    }

    /// The texture of a slot, with `rows` rows or more.
    fn texture(&mut self, slot: Slot, rows: u64) -> wgpu::Texture {
        let large = self.textures.get(&slot).filter(|texture| u64::from(texture.height()) >= rows);
        large.cloned().unwrap_or_else(|| {
            let texture = self.gpu.texture(slot, rows);
            self.textures.insert(slot, texture.clone());
            texture
        })
    }

    /// Copies a part of a tensor into a texture, unless it is there.
    fn load(&mut self, slot: Slot, source: &Tensor, part: Copied) {
        let held = (source.at(), part);
        if self.held.insert(slot, held) != Some(held) {
            self.pass = None;
            let texture = self.texture(slot, part.height());
            texels::copy(&mut self.encoder, source.place(), part, &texture);
        }
    }

    /// Forgets the textures that hold a part of a tensor's buffer, because it is about to change.
    fn changes(&mut self, tensor: &Tensor) {
        let [number, _] = tensor.at();
        self.held.retain(|_, ([held, _], _)| *held != number);
    }

    /// The open pass: one for all dispatches, or a new one with timestamps when profiling.
    fn pass(&mut self, kernel: &str) -> &mut wgpu::ComputePass<'static> {
        let begin = |encoder: &mut wgpu::CommandEncoder, timestamps| {
            let descriptor =
                wgpu::ComputePassDescriptor { label: Some(kernel), timestamp_writes: timestamps };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        };
        if self.gpu.profiler().is_none() {
            return self.pass.get_or_insert_with(|| begin(&mut self.encoder, None));
        }
        self.pass = None;
        let marks = self.marks.get_or_insert_with(|| Marks::new(self.gpu.device()));
        self.pass.insert(begin(&mut self.encoder, Some(marks.next(kernel))))
    }

    fn submit(mut self, uniforms: Vec<u8>, operations: f64) {
        if self.gpu.profiler().is_some() {
            // The open pass times the last kernel alone.
            self.pass = None;
        }
        let mut pass = self
            .pass
            .take()
            .unwrap_or_else(|| self.encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        let (kernel, group) = self.gpu.sentinel().dispatch(self.gpu);
        pass.set_pipeline(&kernel.compiled(self.gpu).pipeline);
        pass.set_bind_group(0, &group, &[uniforms.len() as u32]);
        pass.dispatch_workgroups(1, 1, 1);
        drop(pass);
        let marks = self.gpu.profiler().zip(self.marks.take());
        let read =
            marks.map(|(profiler, marks)| profiler.resolve(self.gpu.device(), &mut self.encoder, marks));
        self.gpu.submit(self.encoder, Some(uniforms), operations);
        if let Some(read) = read {
            read();
        }
    }
}
