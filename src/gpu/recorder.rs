//! Records kernels into command buffers and submits them in portions that no watchdog minds.

use super::profile::Marks;
use super::{Gpu, Tensor};

/// Bytes between the parameter blocks of two dispatches (WebGPU's default `min_uniform_buffer_offset_alignment`).
pub(crate) const UNIFORM_STRIDE: u64 = 256;
/// Dispatches per submit at most: the size of the device's uniform buffer.
pub(super) const MAX_DISPATCHES: u64 = 1024;
pub(super) const UNIFORM_BYTES: u64 = UNIFORM_STRIDE * MAX_DISPATCHES;
/// WebGPU's default `max_compute_workgroups_per_dimension`.
const MAX_GROUPS: u64 = 65_535;

/// A compiled compute pipeline; binding 0 is its parameter block, the rest are storage buffers.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) bindings: usize,
}

/// A tensor bound to a kernel.
pub type Binding<'a> = &'a Tensor;

/// Collects dispatches; submits them when their estimated cost reaches the device's budget, and at [`Recorder::submit`].
pub struct Recorder<'g> {
    gpu: &'g Gpu,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    uniforms: Vec<u8>,
    operations: f64,
    marks: Option<Marks>,
}

impl<'g> Recorder<'g> {
    /// An empty recorder.
    pub fn new(gpu: &'g Gpu) -> Self {
        Self { gpu, encoder: None, pass: None, uniforms: Vec::new(), operations: 0.0, marks: None }
    }

    /// The device it records for.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// The open encoder outside any pass, for copies and clears.
    pub(super) fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        let gpu = self.gpu;
        self.encoder.get_or_insert_with(|| gpu.device().create_command_encoder(&Default::default()))
    }

    /// Records `groups` workgroups of `kernel`. `operations` is an estimate of its cost for the submit budget.
    ///
    /// The workgroups are spread over two dimensions when they exceed one; shaders read a flat index by
    /// `common/index.wgsl` and ignore the surplus.
    ///
    /// # Panics
    /// When the number of bindings differs from the shader's: a bug in the caller.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        kernel: &Kernel,
        params: &P,
        bindings: &[Binding],
        groups: u64,
        operations: f64,
    ) {
        assert_eq!(bindings.len(), kernel.bindings, "{}: number of bindings", kernel.name);
        if groups == 0 {
            return;
        }
        let full = self.uniforms.len() as u64 + UNIFORM_STRIDE > UNIFORM_BYTES;
        let spent = self.operations > 0.0 && self.operations + operations > self.gpu.submit_budget();
        if full || spent {
            self.submit();
        }
        let offset = self.uniforms.len() as u32;
        self.uniforms.extend_from_slice(bytemuck::bytes_of(params));
        self.uniforms.resize(offset as usize + UNIFORM_STRIDE as usize, 0);
        let group = self.bind(kernel, bindings, size_of::<P>() as u64);
        self.begin_pass(&kernel.name);
        if let Some(pass) = &mut self.pass {
            pass.set_pipeline(&kernel.pipeline);
            pass.set_bind_group(0, &group, &[offset]);
            let rows = groups.div_ceil(MAX_GROUPS);
            let columns = groups.div_ceil(rows);
            pass.dispatch_workgroups(columns as u32, rows as u32, 1);
        }
        self.operations += operations.max(1.0);
    }

    /// Sees to it that a pass is open: one for all dispatches, or a new one with timestamps when profiling.
    fn begin_pass(&mut self, kernel: &str) {
        if self.gpu.profiler().is_none() {
            if self.pass.is_none() {
                self.pass = Some(self.encoder().begin_compute_pass(&Default::default()).forget_lifetime());
            }
            return;
        }
        let mut marks = self.marks.take().unwrap_or_else(|| Marks::new(self.gpu.device()));
        let descriptor =
            wgpu::ComputePassDescriptor { label: Some(kernel), timestamp_writes: Some(marks.next(kernel)) };
        self.pass = Some(self.encoder().begin_compute_pass(&descriptor).forget_lifetime());
        self.marks = Some(marks);
    }

    fn bind(&self, kernel: &Kernel, bindings: &[Binding], param_bytes: u64) -> wgpu::BindGroup {
        let uniform = wgpu::BufferBinding {
            buffer: self.gpu.uniforms(),
            offset: 0,
            size: wgpu::BufferSize::new(param_bytes.next_multiple_of(16)),
        };
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(uniform) }];
        entries.extend(bindings.iter().zip(1..).map(|(tensor, binding)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(tensor.binding()),
        }));
        self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&kernel.name),
            layout: &kernel.layout,
            entries: &entries,
        })
    }

    /// Submits what is recorded so far.
    pub fn submit(&mut self) {
        self.pass = None;
        let Some(mut encoder) = self.encoder.take() else { return };
        let marks = self.gpu.profiler().zip(self.marks.take());
        let read = marks.map(|(profiler, marks)| profiler.resolve(self.gpu.device(), &mut encoder, marks));
        self.gpu.submit(encoder, &self.uniforms, self.operations);
        if let Some(read) = read {
            read();
        }
        self.uniforms.clear();
        self.operations = 0.0;
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.submit();
    }
}
