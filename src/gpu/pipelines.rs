//! Compiles variants into pipelines, lazily and once per device. Bind group layouts are derived from the
//! shader.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use super::{Compiled, Gpu, Kernel, Slot};
use crate::shader::{Variant, parse, permutations};

fn listed() -> &'static BTreeSet<String> {
    static LISTED: OnceLock<BTreeSet<String>> = OnceLock::new();
    LISTED.get_or_init(|| match permutations() {
        Ok(all) => all.iter().map(ToString::to_string).collect(),
        Err(message) => panic!("shaders/permutations: {message}"),
    })
}

/// The kernel of `variant` (`name FLAG NAME=VALUE ...`). It is compiled just before its first run.
///
/// # Panics
/// At compilation, when the variant is not in `shaders/permutations` or its shader is invalid. Both are bugs
/// that `tests/shaders.rs` finds without a GPU.
pub fn kernel(gpu: &Gpu, variant: &str) -> Arc<Kernel> {
    let name = variant.to_string();
    gpu.kernel(variant, move |gpu| {
        let parsed = Variant::parse(&name).unwrap_or_else(|message| panic!("{message}"));
        assert!(listed().contains(&parsed.to_string()), "{parsed} is not listed in shaders/permutations");
        let module = parse(&parsed, gpu.lanes()).unwrap_or_else(|message| panic!("{message}"));
        compile(gpu, &parsed, module)
    })
}

fn compile(gpu: &Gpu, variant: &Variant, module: naga::Module) -> Compiled {
    let device = gpu.device();
    let name = variant.to_string();
    let entries = layout_entries(&module);
    let layout = device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&name), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    #[cfg(not(target_arch = "wasm32"))]
    let source = wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module));
    #[cfg(target_arch = "wasm32")]
    let source = match crate::shader::browser_text(&module) {
        Ok(text) => wgpu::ShaderSource::Wgsl(text.into()),
        Err(message) => panic!("{name}: {message}"),
    };
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&name), source };
    let mut checks = wgpu::ShaderRuntimeChecks::unchecked();
    checks.bounds_checks = cfg!(debug_assertions);
    // SAFETY: all shaders are this crate's own, every index in them is in bounds by construction, their loops
    // terminate, and the tests run them with bounds checks, in debug builds. Loop counters stay off there
    // too: they keep drivers from unrolling loops, and FXC fails with some.
    #[allow(unsafe_code)]
    let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: gpu.pipeline_cache(),
    });
    let (mut numbers, mut writes, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    for &wgpu::BindGroupLayoutEntry { binding: number, ty, .. } in &entries {
        let (written, slot) = match ty {
            wgpu::BindingType::Buffer { ty: wgpu::BufferBindingType::Storage { read_only }, .. } => {
                (!read_only, None)
            }
            wgpu::BindingType::Texture { sample_type, .. } => {
                (false, Some(Slot { number, words: sample_type == wgpu::TextureSampleType::Uint }))
            }
            _ => continue,
        };
        numbers.push(number);
        writes.push(written);
        slots.push(slot);
    }
    Compiled { pipeline, layout, numbers, writes, slots }
}

/// The bind group layout of a shader: its uniform with a dynamic offset, its storage buffers with their
/// access mode, its textures with the type of their texels.
fn layout_entries(module: &naga::Module) -> Vec<wgpu::BindGroupLayoutEntry> {
    let mut entries: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, global)| {
            let binding = global.binding.as_ref()?.binding;
            let buffer = |ty, has_dynamic_offset| wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset,
                min_binding_size: None,
            };
            let ty = match (global.space, &module.types[global.ty].inner) {
                (naga::AddressSpace::Storage { access }, _) => {
                    let read_only = !access.contains(naga::StorageAccess::STORE);
                    buffer(wgpu::BufferBindingType::Storage { read_only }, false)
                }
                (_, naga::TypeInner::Image { class, .. }) => wgpu::BindingType::Texture {
                    sample_type: match class {
                        naga::ImageClass::Sampled { kind: naga::ScalarKind::Uint, .. } => {
                            wgpu::TextureSampleType::Uint
                        }
                        _ => wgpu::TextureSampleType::Float { filterable: false },
                    },
                    view_dimension: wgpu::TextureViewDimension::D2,
                    multisampled: false,
                },
                _ => buffer(wgpu::BufferBindingType::Uniform, true),
            };
            Some(wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty,
                count: None,
            })
        })
        .collect();
    entries.sort_by_key(|entry| entry.binding);
    entries
}
