//! Kernels, compiled when they are first needed, and the bind groups of their calls.

use std::collections::HashMap;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use web_time::Instant;

use super::{Gpu, Slot, Tensor};

/// A pipeline with the layout of its bind group: its parameter block, and a storage buffer or a texture for
/// each tensor.
pub(crate) struct Compiled {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// The binding number of each tensor, ascending: optional tensors leave gaps.
    pub numbers: Vec<u32>,
    /// For each tensor, whether the kernel may write it.
    pub writes: Vec<bool>,
    /// For each tensor, the texture that it is read through, if it is.
    pub slots: Vec<Option<Slot>>,
}

type Make = Box<dyn Fn(&Gpu) -> Compiled + Send + Sync>;

/// A compute kernel; binding 0 is its parameter block, the rest are tensors.
pub struct Kernel {
    name: String,
    make: Make,
    compiled: OnceLock<Compiled>,
}

impl Kernel {
    pub(super) fn new(name: &str, make: Make) -> Self {
        Self { name: name.to_string(), make, compiled: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_compiled(&self) -> bool {
        self.compiled.get().is_some()
    }

    pub(super) fn compiled(&self, gpu: &Gpu) -> &Compiled {
        self.compiled.get_or_init(|| {
            let started = Instant::now();
            let compiled = (self.make)(gpu);
            log::debug!("compiled {} in {:.2} s", self.name, started.elapsed().as_secs_f64());
            compiled
        })
    }
}

/// Compiles `kernels` one after the other: a browser has its own threads for compilation.
#[cfg(target_arch = "wasm32")]
pub(super) fn compile(gpu: &Gpu, kernels: &[Arc<Kernel>]) {
    for kernel in kernels {
        kernel.compiled(gpu);
    }
}

/// Compiles `kernels` on all cores: drivers take up to a second for one kernel.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn compile(gpu: &Gpu, kernels: &[Arc<Kernel>]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            kernel.compiled(gpu);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(work);
        });
        work();
    });
}

/// A kernel's address, and the number, offset and size of each bound buffer.
type Key = (usize, Vec<[u64; 3]>);

/// The bind groups made so far. They are kept because each step uses the same ones as the step before.
#[derive(Default)]
pub(super) struct BindGroups(Mutex<HashMap<Key, wgpu::BindGroup>>);

impl BindGroups {
    /// The bind group of `kernel` with `bindings`, and the textures for those that it reads through textures.
    /// `kernel` must live as long as `gpu`, because groups are
    /// found by its address.
    ///
    /// # Panics
    /// When the number of bindings differs from the shader's: a bug in the caller.
    pub fn of(
        &self,
        gpu: &Gpu,
        kernel: &Arc<Kernel>,
        (bindings, textures): (&[Tensor], &[Option<wgpu::Texture>]),
        param_bytes: u64,
    ) -> wgpu::BindGroup {
        let compiled = kernel.compiled(gpu);
        assert_eq!(bindings.len(), compiled.writes.len(), "{}: number of bindings", kernel.name);
        // A slot's texture is the same in every call, until it has to be larger.
        let view = |(i, tensor): (usize, &Tensor)| match compiled.slots[i].zip(textures[i].as_ref()) {
            Some((slot, texture)) => [slot.key(), u64::from(texture.height()), 0],
            None => tensor.view(),
        };
        let views = bindings.iter().enumerate().map(view).collect();
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let group = groups.entry((Arc::as_ptr(kernel) as usize, views)).or_insert_with(|| {
            let uniform = wgpu::BufferBinding {
                buffer: gpu.uniforms(),
                offset: 0,
                size: wgpu::BufferSize::new(param_bytes.next_multiple_of(16)),
            };
            let textures: Vec<_> = textures
                .iter()
                .map(|texture| texture.as_ref().map(|texture| texture.create_view(&Default::default())))
                .collect();
            let tensors = bindings.iter().zip(&textures).map(|(tensor, texture)| match texture {
                Some(view) => wgpu::BindingResource::TextureView(view),
                None => wgpu::BindingResource::Buffer(tensor.binding()),
            });
            let entries: Vec<_> = std::iter::once((0, wgpu::BindingResource::Buffer(uniform)))
                .chain(compiled.numbers.iter().copied().zip(tensors))
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&kernel.name),
                layout: &compiled.layout,
                entries: &entries,
            })
        });
        group.clone()
    }

    /// Drops the groups that hold the buffer of this number.
    pub fn forget(&self, buffer: u64) {
        let holds = |(_, views): &Key| views.iter().any(|view| view[0] == buffer);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| !holds(key));
    }
}
