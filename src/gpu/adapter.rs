//! The adapters of this machine: their properties, and the choice of one.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::setting_to;
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

/// A graphics API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "lower"))]
pub enum Backend {
    /// Linux, Windows, Android
    Vulkan,
    /// macOS, iOS
    Metal,
    /// Windows
    Dx12,
    /// OpenGL 4.3 or OpenGL ES 3.1, for machines without any of the others
    Gl,
}

impl Backend {
    /// Its name as `--backend` takes it.
    fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::Gl => "gl",
        }
    }

    fn flag(self) -> wgpu::Backends {
        match self {
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
            Self::Dx12 => wgpu::Backends::DX12,
            Self::Gl => wgpu::Backends::GL,
        }
    }
}

/// What limits the APIs that are asked: the setting `gpu.backend` or wgpu's variable, as the user wrote it.
fn limited(backend: Option<Backend>) -> Option<String> {
    let variable = || std::env::var("WGPU_BACKEND").ok().map(|value| format!("WGPU_BACKEND={value}"));
    backend.map(|backend| setting_to("gpu.backend", backend.name())).or_else(variable)
}

/// Whether this is a software rasterizer. Through OpenGL, wgpu knows only some by their names.
fn is_software(info: &wgpu::AdapterInfo) -> bool {
    let name = info.name.to_lowercase();
    let named = ["basic render", "softpipe", "software"].iter().any(|part| name.contains(part));
    info.device_type == wgpu::DeviceType::Cpu || (info.backend == wgpu::Backend::Gl && named)
}

/// WebGPU's default limits, without those of drawing and of what no kernel uses: old drivers offer less.
pub(super) fn needed() -> wgpu::Limits {
    wgpu::Limits {
        max_texture_dimension_1d: 0,
        max_texture_dimension_3d: 0,
        max_texture_array_layers: 1,
        max_dynamic_storage_buffers_per_pipeline_layout: 0,
        max_samplers_per_shader_stage: 0,
        max_storage_textures_per_shader_stage: 0,
        max_vertex_buffers: 0,
        max_vertex_attributes: 0,
        max_vertex_buffer_array_stride: 0,
        max_inter_stage_shader_variables: 0,
        max_color_attachments: 0,
        max_color_attachment_bytes_per_sample: 0,
        ..Default::default()
    }
}

async fn enumerated(backends: wgpu::Backends, more: wgpu::InstanceFlags) -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = backends;
    descriptor.flags |= more;
    wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::all()).await
}

/// The adapters that `backends` offer, and the reasons why some cannot be used.
async fn offered(backends: wgpu::Backends) -> (Vec<wgpu::Adapter>, Vec<String>) {
    let mut refused = Vec::new();
    let mut found = enumerated(backends, wgpu::InstanceFlags::empty()).await;
    found.retain(|adapter| {
        let mut reason = None;
        needed().check_limits_with_fail_fn(&adapter.limits(), false, |name, wanted, has| {
            reason.get_or_insert_with(|| format!("{name} is {has}, not {wanted}"));
        });
        let info = adapter.get_info();
        // Browsers give no name.
        let name = if info.name.is_empty() { "the browser's GPU" } else { &info.name };
        refused.extend(reason.as_ref().map(|why| format!("{name} ({:?}): {why}", info.backend)));
        reason.is_none()
    });
    (found, refused)
}

/// The adapters of `backend`, or of those that wgpu's variable `WGPU_BACKEND` lists, or of all. Those come
/// first that should be used: real GPUs before software, discrete GPUs before integrated ones; then in the
/// driver's order.
///
/// OpenGL is asked only where no other API offers anything, or where nothing else is allowed: Mesa's OpenGL
/// makes the symbols of its LLVM visible to the whole process, and libraries with an LLVM of their own that
/// are loaded later crash (Triton, which transformers loads).
pub(super) async fn adapters(backend: Option<Backend>) -> Result<Vec<wgpu::Adapter>> {
    let asked = backend.map(Backend::flag).or_else(wgpu::Backends::from_env);
    let allowed = asked.unwrap_or(wgpu::Backends::all());
    let (mut found, mut refused) = offered(allowed & wgpu::Backends::PRIMARY).await;
    if found.is_empty() && allowed.contains(wgpu::Backends::GL) {
        let (through_gl, reasons) = offered(wgpu::Backends::GL).await;
        found = through_gl;
        refused.extend(reasons);
    }
    if found.is_empty() && refused.is_empty() {
        // wgpu hides these, and rightly: with Mesa 22.0's llvmpipe nothing ever ends. They are only named.
        let flag = wgpu::InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
        let hidden = enumerated(allowed & wgpu::Backends::VULKAN, flag).await;
        refused.extend(hidden.iter().map(|adapter| {
            format!(
                "{} (Vulkan): the driver says that it does not conform to Vulkan",
                adapter.get_info().name
            )
        }));
    }
    refused.iter().for_each(|reason| log::info!("left out {reason}"));
    found.sort_by_key(|adapter| {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other | wgpu::DeviceType::Cpu => 3,
        };
        (is_software(&info), kind)
    });
    if found.is_empty() { Err(Error::no_gpu(limited(backend), &refused)) } else { Ok(found) }
}

/// Whether devices have subgroups although wgpu does not know it ([`subgroups_are_asked_for`]).
static ASKED_FOR: AtomicBool = AtomicBool::new(false);

/// Says that whoever opens devices asks for subgroups, where an adapter has them. wgpu's WebGPU backend
/// cannot ask a browser for them; a page can.
pub fn subgroups_are_asked_for() {
    ASKED_FOR.store(true, Ordering::Relaxed);
}

/// Whether an adapter or a device with `features` has subgroups.
pub(super) fn has_subgroups(features: wgpu::Features) -> bool {
    features.contains(wgpu::Features::SUBGROUP) || ASKED_FOR.load(Ordering::Relaxed)
}

fn tier_of(info: &wgpu::AdapterInfo) -> Tier {
    if is_software(info) { Tier::Software } else { Tier::Portable }
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
        subgroup_size: has_subgroups(features).then_some((info.subgroup_min_size, info.subgroup_max_size)),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrices: cooperative_matrices(adapter),
        name: info.name,
    }
}

/// All adapters that can be used, through `backend` or through any API. The first is the one that is used if
/// none is named.
///
/// # Errors
/// [`Error::NoAdapter`] if there is none.
pub async fn list_adapters(backend: Option<Backend>) -> Result<Vec<AdapterSummary>> {
    Ok(adapters(backend).await?.iter().enumerate().map(|(i, a)| summary(i, a)).collect())
}

/// The adapter that [`Gpu::open`](super::Gpu::open) would take, without opening it.
///
/// # Errors
/// [`Error::NoAdapter`] when there is no adapter, or none matches `wanted`.
pub async fn chosen_adapter(wanted: Option<&str>, backend: Option<Backend>) -> Result<AdapterSummary> {
    let mut found = list_adapters(backend).await?;
    let index = choose(&found, wanted)?;
    Ok(found.swap_remove(index))
}

/// The index in `found` of the adapter with the number or the name `wanted`, or 0.
pub(super) fn choose(found: &[AdapterSummary], wanted: Option<&str>) -> Result<usize> {
    let Some(wanted) = wanted else { return Ok(0) };
    let lower = wanted.to_lowercase();
    let by_index = wanted.parse().ok().filter(|&i: &usize| i < found.len());
    let named = |fits: &dyn Fn(&str) -> bool| found.iter().position(|a| fits(&a.name.to_lowercase()));
    let index = by_index.or_else(|| named(&|name| name == lower));
    index.or_else(|| named(&|name| name.contains(&lower))).ok_or_else(|| {
        let names: Vec<_> = found.iter().map(|adapter| adapter.name.as_str()).collect();
        Error::NoAdapter {
            found: format!("no adapter matches \"{wanted}\"; available: {}", names.join(", ")),
            fix: "give an index or a part of a name as `aweigh devices` lists them".into(),
        }
    })
}

/// Why the first of `found`, the list of [`list_adapters`], is used if none is named; `None` if it is the
/// only GPU, or the only one through the API that was asked for.
pub fn why_first(found: &[AdapterSummary], backend: Option<Backend>) -> Option<String> {
    why(found, limited(backend))
}

fn why(found: &[AdapterSummary], limited: Option<String>) -> Option<String> {
    let first = found.first()?;
    if first.tier == Tier::Software {
        let with = limited.map(|limit| format!(" with {limit}")).unwrap_or_default();
        return Some(format!("software: no GPU was found{with}"));
    }
    if first.backend == "Gl" && limited.is_none() {
        return Some("no other API offers one".into());
    }
    let other = found.iter().find(|adapter| adapter.name != first.name && adapter.tier != Tier::Software)?;
    Some(match first.kind == other.kind {
        true => format!("the first of its kind; before {}", other.name),
        false => format!("{}; before {}", spoken(&first.kind), other.name),
    })
}

/// A kind of adapter in words.
fn spoken(kind: &str) -> &'static str {
    match kind {
        "DiscreteGpu" => "discrete",
        "IntegratedGpu" => "integrated",
        "VirtualGpu" => "virtual",
        _ => "of unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_that_cannot_be_used_are_named() {
        let message = |refused: &[String]| Error::no_gpu(None, refused).to_string();
        let told = message(&["llvmpipe (Vulkan): max_bind_groups is 1, not 4".into()]);
        assert!(told.contains("cannot be used: llvmpipe (Vulkan): max_bind_groups is 1, not 4"), "{told}");
        assert_eq!(told.contains("install a newer driver"), cfg!(target_os = "linux"), "{told}");
        assert!(!message(&[]).contains("newer driver"));
    }

    fn adapter(name: &str, kind: &str, backend: &str) -> AdapterSummary {
        AdapterSummary {
            index: 0,
            name: name.into(),
            backend: backend.into(),
            kind: kind.into(),
            driver: String::new(),
            max_binding: 1 << 27,
            max_buffer: 1 << 28,
            workgroup_memory: 1 << 14,
            subgroup_size: None,
            shader_f16: false,
            cooperative_matrices: Vec::new(),
            tier: if kind == "Cpu" { Tier::Software } else { Tier::Portable },
        }
    }

    #[test]
    fn a_gpu_is_named_by_its_number_its_name_or_a_part_of_it() {
        let found = [
            adapter("GeForce RTX 4060 Ti", "DiscreteGpu", "Vulkan"),
            adapter("GeForce RTX 4060", "DiscreteGpu", "Vulkan"),
            adapter("llvmpipe (LLVM 15.0.6, 256 bits)", "Cpu", "Vulkan"),
        ];
        let index = |wanted| choose(&found, wanted).ok();
        assert_eq!([index(None), index(Some("2")), index(Some("llvm"))], [Some(0), Some(2), Some(2)]);
        // The whole name goes before a longer one that contains it.
        assert_eq!([index(Some("geforce rtx 4060")), index(Some("RTX"))], [Some(1), Some(0)]);
        // A number that is no index is part of a name.
        assert_eq!(index(Some("4060")), Some(0));
        let error = choose(&found, Some("Radeon")).unwrap_err().to_string();
        assert!(error.contains("no adapter matches \"Radeon\"; available: GeForce RTX 4060 Ti, "), "{error}");
    }

    #[test]
    fn the_choice_has_a_reason() {
        let discrete = adapter("A", "DiscreteGpu", "Vulkan");
        let integrated = adapter("B", "IntegratedGpu", "Vulkan");
        let software = adapter("C", "Cpu", "Vulkan");
        let why = |found: &[&AdapterSummary]| {
            super::why(&found.iter().map(|&adapter| adapter.clone()).collect::<Vec<_>>(), None)
        };
        assert_eq!(why(&[&discrete]), None);
        assert_eq!(why(&[&discrete, &software]), None);
        // The same GPU through another API.
        assert_eq!(why(&[&discrete, &adapter("A", "DiscreteGpu", "Dx12")]), None);
        assert_eq!(why(&[&discrete, &integrated]).unwrap(), "discrete; before B");
        assert_eq!(
            why(&[&discrete, &adapter("D", "DiscreteGpu", "Vulkan")]).unwrap(),
            "the first of its kind; before D"
        );
        assert_eq!(why(&[&software]).unwrap(), "software: no GPU was found");
        let through_gl = adapter("A", "Other", "Gl");
        assert_eq!(why(&[&through_gl, &software]).unwrap(), "no other API offers one");
        // Other APIs were not asked.
        let asked = Some("--backend gl".to_owned());
        assert_eq!(super::why(&[through_gl, software.clone()], asked.clone()), None);
        assert_eq!(super::why(&[software], asked).unwrap(), "software: no GPU was found with --backend gl");
    }

    #[test]
    fn software_is_known_through_opengl_too() {
        let of = |name: &str, kind, backend| {
            let mut info = wgpu::AdapterInfo::new(kind, backend);
            info.name = name.into();
            is_software(&info)
        };
        let (unknown, gl) = (wgpu::DeviceType::Other, wgpu::Backend::Gl);
        assert!(of("D3D12 (Microsoft Basic Render Driver)", unknown, gl) && of("softpipe", unknown, gl));
        assert!(!of("NVIDIA GeForce GT 730/PCIe/SSE2", unknown, gl));
        assert!(of("llvmpipe", wgpu::DeviceType::Cpu, wgpu::Backend::Vulkan));
    }
}
