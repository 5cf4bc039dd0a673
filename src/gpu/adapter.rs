//! The adapters of this machine: their properties, and the choice of one.

use crate::{Error, Result};

/// Which kernels suit the adapter. All tiers compute the same functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Real GPUs: tiles in workgroup memory, WebGPU's default limits, no features except those that
    /// [`Precision::F16`](super::Precision::F16) uses.
    Portable,
    /// Software rasterizers: no barriers, large register blocks.
    Software,
}

/// One adapter as `aweigh devices` lists it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AdapterSummary {
    /// Index in the list, for `--gpu N`.
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
    /// Smallest and largest subgroup size, if subgroups are supported.
    pub subgroup_size: Option<(u32, u32)>,
    /// Whether shaders may compute in f16.
    pub shader_f16: bool,
    /// The kinds of cooperative matrices that its subgroups can multiply.
    pub cooperative_matrices: Vec<CooperativeMatrix>,
    /// Which kernels suit it.
    pub tier: Tier,
}

/// One kind of cooperative matrix: the product of an `(m, k)` and a `(k, n)` matrix is added to `(m, n)`
/// sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CooperativeMatrix {
    /// Rows of the sums.
    pub m: u32,
    /// Columns of the sums.
    pub n: u32,
    /// Terms of each sum.
    pub k: u32,
    /// Type of the factors.
    pub inputs: Scalar,
    /// Type of the sums.
    pub sums: Scalar,
}

/// A type of a cooperative matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// 16-bit float.
    F16,
    /// 32-bit float.
    F32,
    /// Signed integer.
    I32,
    /// Unsigned integer.
    U32,
}

impl From<wgpu::CooperativeScalarType> for Scalar {
    fn from(scalar: wgpu::CooperativeScalarType) -> Self {
        match scalar {
            wgpu::CooperativeScalarType::F16 => Self::F16,
            wgpu::CooperativeScalarType::F32 => Self::F32,
            wgpu::CooperativeScalarType::I32 => Self::I32,
            wgpu::CooperativeScalarType::U32 => Self::U32,
        }
    }
}

impl std::fmt::Display for CooperativeMatrix {
    /// For example `16x16x16 f16>f32`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { m, n, k, inputs, sums } = self;
        write!(f, "{}", format!("{m}x{n}x{k} {inputs:?}>{sums:?}").to_lowercase())
    }
}

impl AdapterSummary {
    /// The side of the largest square matrices with factors of this type and f32 sums that both the adapter
    /// and the kernels support: 16 or 8.
    pub fn cooperative_side(&self, inputs: Scalar) -> Option<u32> {
        [16, 8].into_iter().find(|&side| {
            let wanted = CooperativeMatrix { m: side, n: side, k: side, inputs, sums: Scalar::F32 };
            self.cooperative_matrices.contains(&wanted)
        })
    }

    /// The smallest number of lanes that a subgroup may have. On Metal, wgpu reports one range for all GPUs;
    /// those with cooperative matrices have 32 lanes.
    pub(super) fn least_subgroup(&self) -> Option<u32> {
        let metal = self.backend == "Metal" && !self.cooperative_matrices.is_empty();
        self.subgroup_size.map(|(least, _)| if metal { 32 } else { least })
    }
}

pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // On most drivers the GL backend lacks features that the engine needs; Vulkan, Metal, DX12 and the
    // browser remain.
    descriptor.backends &= wgpu::Backends::PRIMARY;
    wgpu::Instance::new(descriptor)
}

pub(super) async fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
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

fn cooperative_matrices(adapter: &wgpu::Adapter) -> Vec<CooperativeMatrix> {
    // Without the feature, the kinds that the driver reports cannot be used.
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return Vec::new();
    }
    let kinds = adapter.cooperative_matrix_properties();
    let kinds = kinds.iter().map(|kind| CooperativeMatrix {
        m: kind.m_size,
        n: kind.n_size,
        k: kind.k_size,
        inputs: kind.ab_type.into(),
        sums: kind.cr_type.into(),
    });
    kinds.collect()
}

pub(super) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
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
        cooperative_matrices: cooperative_matrices(adapter),
        name: info.name,
    }
}

/// All adapters on this machine, the fastest kind first.
pub async fn list_adapters() -> Vec<AdapterSummary> {
    adapters(&instance()).await.iter().enumerate().map(|(i, a)| summary(i, a)).collect()
}

/// The adapter that [`Gpu::open`](super::Gpu::open) would take, without opening it.
///
/// # Errors
/// [`Error::NoAdapter`] when there is no adapter, or none matches `wanted`.
pub async fn chosen_adapter(wanted: Option<&str>) -> Result<AdapterSummary> {
    let found = adapters(&instance()).await;
    let index = choose(&found, wanted)?;
    Ok(summary(index, &found[index]))
}

pub(super) fn choose(found: &[wgpu::Adapter], wanted: Option<&str>) -> Result<usize> {
    if found.is_empty() {
        return Err(Error::no_gpu());
    }
    let Some(wanted) = wanted else { return Ok(0) };
    let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
    let by_index = wanted.parse().ok().filter(|&i: &usize| i < found.len());
    let by_name = || names.iter().position(|n| n.to_lowercase().contains(&wanted.to_lowercase()));
    by_index.or_else(by_name).ok_or_else(|| Error::NoAdapter {
        found: format!("no adapter matches \"{wanted}\"; available: {}", names.join(", ")),
        fix: "give an index or a part of a name as `aweigh devices` lists them".into(),
    })
}
