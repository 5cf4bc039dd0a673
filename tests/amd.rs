//! What AMD's compiler makes of the kernels that a GPU runs, without an AMD GPU: Mesa's driver RADV has a
//! null device that compiles for any family (`RADV_FORCE_FAMILY`) and runs nothing.
//!
//! The test compiles the variants of unquantised weights for two families. `cargo xtask amd` sets
//! `AWEIGH_AMD=all`: all variants, all families that this Mesa knows, and tables, which it prints.
#![cfg(target_os = "linux")]
// Vulkan without wgpu, which does not open the null device.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ash::vk;
use aweigh::shader::{Lanes, Variant, parse, permutations};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// The families: Mesa's name, and AMD's. Mesa 22.3 does not know the last two by these names (its compiler
/// was not ready for RDNA 3).
const FAMILIES: [(&str, &str); 6] = [
    ("navi21", "RDNA 2 (RX 6800)"),
    ("vega10", "Vega (Vega 64)"),
    ("navi10", "RDNA 1 (RX 5700)"),
    ("raven", "Vega, in a processor (Ryzen 2400G)"),
    ("navi31", "RDNA 3 (RX 7900)"),
    ("gfx1201", "RDNA 4 (RX 9070)"),
];
/// The kernels whose occupancy counts most, at heads of 64 and 128 elements.
const BUSY: [&str; 4] = ["matmul_tiled", "attention_tiled", "attention_dq_tiled", "attention_dkv_tiled"];
/// Subgroups in flight on a SIMD that these must allow. Vega's have 64 lanes, with a register file of half as
/// many rows; on RDNA 3 and 4 the compiler takes all registers that workgroup memory leaves.
fn least_occupancy(family: &str) -> u64 {
    match family {
        "vega10" | "raven" => 2,
        "gfx1201" => 4,
        "navi31" => 6,
        _ => 8,
    }
}

/// What the compiler says of a variant, by the driver's names.
type Statistics = BTreeMap<String, u64>;

/// Whether a GPU may run a variant: not if it is for software adapters only.
fn is_for_gpus(variant: &Variant) -> bool {
    let only_software = ["matmul", "attention", "attention_dq", "attention_dkv"];
    !only_software.contains(&variant.shader.as_str())
        && !variant.shader.ends_with("_subgroup")
        && !["SERIAL", "TEXELS"].iter().any(|flag| variant.defines.contains_key(*flag))
}

/// The variants to compile: all, or those without quantised weights.
fn variants(all: bool) -> Vec<Variant> {
    let mut found = permutations().expect("shaders/permutations");
    found.retain(|variant| is_for_gpus(variant) && (all || !variant.defines.contains_key("QUANT")));
    found
}

/// The SPIR-V that wgpu would make of a variant in a release build.
fn spirv(variant: &Variant) -> Vec<u32> {
    let module = parse(variant, Lanes::InOrder).unwrap_or_else(|message| panic!("{message}"));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{variant}: {}", error.emit_to_string("")));
    let unchecked = naga::proc::BoundsCheckPolicy::Unchecked;
    let options = naga::back::spv::Options {
        lang_version: if variant.shader == "matmul_coop" { (1, 5) } else { (1, 3) },
        flags: naga::back::spv::WriterFlags::empty(),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: naga::back::spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..Default::default()
    };
    naga::back::spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant}: {e}"))
}

/// A null device that compiles.
struct Compiler {
    /// Mesa's version.
    version: (u32, u32),
    device: ash::Device,
    statistics: ash::khr::pipeline_executable_properties::Device,
    layout: vk::PipelineLayout,
    has_cooperative_matrices: bool,
    /// The loader's library, which must stay open.
    _entry: ash::Entry,
}

impl Compiler {
    fn open() -> Result<Self, vk::Result> {
        // SAFETY: the calls follow Vulkan's rules, and what they point to lives until they return.
        unsafe {
            let entry = ash::Entry::load().expect("a Vulkan loader");
            let about = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance =
                entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&about), None)?;
            let adapter = instance.enumerate_physical_devices()?[0];
            let extensions = instance.enumerate_device_extension_properties(adapter)?;
            let has = |name: &CStr| {
                extensions.iter().any(|one| one.extension_name_as_c_str().is_ok_and(|own| own == name))
            };
            let has_cooperative_matrices = has(ash::khr::cooperative_matrix::NAME);
            let mut names = vec![ash::khr::pipeline_executable_properties::NAME.as_ptr()];
            if has_cooperative_matrices {
                names.push(ash::khr::cooperative_matrix::NAME.as_ptr());
            }
            // All that the device has, but for checked buffer accesses.
            let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut newer = vk::PhysicalDeviceVulkan13Features::default();
            let mut middle = vk::PhysicalDeviceVulkan12Features::default();
            let mut older = vk::PhysicalDeviceVulkan11Features::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut newer)
                .push_next(&mut middle)
                .push_next(&mut older)
                .push_next(&mut executable);
            if has_cooperative_matrices {
                features = features.push_next(&mut matrices);
            }
            instance.get_physical_device_features2(adapter, &mut features);
            features.features.robust_buffer_access = 0;
            let queues =
                [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let wanted = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .push_next(&mut features);
            let device = instance.create_device(adapter, &wanted, None)?;
            let binding = |number: u32| {
                let kind = match number {
                    0 => vk::DescriptorType::UNIFORM_BUFFER,
                    _ => vk::DescriptorType::STORAGE_BUFFER,
                };
                vk::DescriptorSetLayoutBinding::default()
                    .binding(number)
                    .descriptor_type(kind)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            };
            let bindings: Vec<_> = (0..9).map(binding).collect();
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&set, None)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&layout, None)?;
            let statistics = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            let version = instance.get_physical_device_properties(adapter).driver_version;
            let version = (vk::api_version_major(version), vk::api_version_minor(version));
            Ok(Self { version, device, statistics, layout, has_cooperative_matrices, _entry: entry })
        }
    }

    fn compile(&self, words: &[u32]) -> Result<Statistics, vk::Result> {
        // SAFETY: as above; naga has validated the module.
        unsafe {
            let module =
                self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(words), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let wanted = vk::ComputePipelineCreateInfo::default()
                .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR)
                .layout(self.layout)
                .stage(stage);
            let pipelines = self
                .device
                .create_compute_pipelines(vk::PipelineCache::null(), &[wanted], None)
                .map_err(|(_, error)| error)?;
            let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipelines[0]);
            let found = self.statistics.get_pipeline_executable_statistics(&executable)?;
            let value = |one: &vk::PipelineExecutableStatisticKHR| match one.format {
                vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => one.value.f64 as u64,
                _ => one.value.u64,
            };
            let name = |one: &vk::PipelineExecutableStatisticKHR| {
                one.name_as_c_str().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
            };
            let all = found.iter().map(|one| (name(one), value(one))).collect();
            self.device.destroy_pipeline(pipelines[0], None);
            self.device.destroy_shader_module(module, None);
            Ok(all)
        }
    }
}

/// Compiles every `PARTS`th variant for the family that the environment names. Run by the test below, because
/// a process has one family.
#[test]
#[ignore = "a part of the test below"]
fn one_part() {
    let set = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (part, parts): (usize, usize) = (
        set("AWEIGH_AMD_PART").parse().expect("a number"),
        set("AWEIGH_AMD_PARTS").parse().expect("a number"),
    );
    let compiler = Compiler::open().expect("RADV's null device");
    println!("%{}.{}", compiler.version.0, compiler.version.1);
    let all = variants(set("AWEIGH_AMD") == "all");
    for variant in all.iter().skip(part).step_by(parts) {
        if variant.shader == "matmul_coop" && !compiler.has_cooperative_matrices {
            continue;
        }
        let statistics = compiler.compile(&spirv(variant)).unwrap_or_else(|e| panic!("{variant}: {e}"));
        let values: Vec<String> = statistics.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("@{variant}\t{}", values.join("\t"));
    }
}

/// RADV's file for the Vulkan loader.
fn radv() -> Option<PathBuf> {
    let names = [format!("radeon_icd.{}.json", std::env::consts::ARCH), "radeon_icd.json".into()];
    names.iter().map(|name| Path::new("/usr/share/vulkan/icd.d").join(name)).find(|path| path.exists())
}

/// Mesa's version, and each variant's statistics for a family, compiled on all cores; none if the driver
/// does not know it.
fn compiled(family: &str, driver: &Path, all: &str) -> (String, BTreeMap<String, Statistics>) {
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    let this = std::env::current_exe().expect("this program");
    let children: Vec<_> = (0..parts)
        .map(|part| {
            let mut command = Command::new(&this);
            command.args(["--exact", "one_part", "--ignored", "--nocapture", "--test-threads=1"]);
            command
                .env("RADV_FORCE_FAMILY", family)
                .env("VK_DRIVER_FILES", driver)
                .env("NODEVICE_SELECT", "1");
            command.env("VK_ICD_FILENAMES", driver).env("AWEIGH_AMD", all);
            command.env("AWEIGH_AMD_PART", part.to_string()).env("AWEIGH_AMD_PARTS", parts.to_string());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    let (mut version, mut found) = (String::new(), BTreeMap::new());
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("Unknown family") {
            continue;
        }
        assert!(output.status.success(), "{family}: {text}\n{errors}");
        let about = text.lines().find_map(|line| line.split_once('%'));
        version = about.map_or("an unknown version", |(_, version)| version).to_owned();
        for line in text.lines().filter_map(|line| line.split_once('@').map(|(_, rest)| rest)) {
            let mut words = line.split('\t');
            let variant = words.next().unwrap_or_default().to_owned();
            let pairs = words.filter_map(|pair| pair.split_once('='));
            let values = pairs.map(|(name, value)| (name.to_owned(), value.parse().expect("a number")));
            found.insert(variant, values.collect());
        }
    }
    (version, found)
}

/// The lines of a family's table, one for each shader.
fn table(found: &BTreeMap<String, Statistics>) -> String {
    let mut shaders: BTreeMap<&str, Vec<&Statistics>> = BTreeMap::new();
    for (variant, statistics) in found {
        shaders.entry(variant.split(' ').next().unwrap_or_default()).or_default().push(statistics);
    }
    let mut out = String::from(
        "| kernel | variants | VGPRs | subgroups per SIMD | workgroup memory, bytes | instructions | \
         inverse throughput | scratch, bytes |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (shader, all) in shaders {
        let range = |name: &str| {
            let values = all.iter().map(|one| one.get(name).copied().unwrap_or_default());
            let (least, most) = values.fold((u64::MAX, 0), |(l, m), v| (l.min(v), m.max(v)));
            if least == most { most.to_string() } else { format!("{least} to {most}") }
        };
        out += &format!(
            "| {shader} | {} | {} | {} | {} | {} | {} | {} |\n",
            all.len(),
            range("VGPRs"),
            range("Subgroups per SIMD"),
            range("LDS size"),
            range("Instructions"),
            range("Inverse Throughput"),
            range("Scratch size"),
        );
    }
    out
}

/// What is wrong with a variant's statistics, if anything is.
fn fault(family: &str, variant: &Variant, statistics: &Statistics) -> Option<String> {
    let of =
        |name: &str| statistics.get(name).copied().unwrap_or_else(|| panic!("no {name}: {statistics:?}"));
    let spilled = ["Spilled VGPRs", "Spilled SGPRs", "Scratch size"].map(of);
    if spilled != [0; 3] {
        return Some(format!("{variant}: spills {spilled:?}"));
    }
    let head = variant.defines.get("HEAD_DIM").copied().flatten();
    let busy = BUSY.contains(&variant.shader.as_str()) && head.is_none_or(|dim| [64, 128].contains(&dim));
    let occupancy = of("Subgroups per SIMD");
    (busy && occupancy < least_occupancy(family))
        .then(|| format!("{variant}: {} VGPRs, {occupancy} subgroups per SIMD", of("VGPRs")))
}

#[test]
fn kernels_fit_into_amd_registers() {
    let Some(driver) = radv() else {
        // Not by eprintln, whose text a test that passes does not show.
        let skipped = "tests/amd.rs is skipped: there is no RADV (Debian's package mesa-vulkan-drivers)\n";
        std::io::stderr().write_all(skipped.as_bytes()).expect("stderr");
        return;
    };
    let all = std::env::var("AWEIGH_AMD").unwrap_or_default();
    let families = if all == "all" { &FAMILIES[..] } else { &FAMILIES[..2] };
    let mut faults = Vec::new();
    for (family, name) in families {
        let (version, found) = compiled(family, &driver, &all);
        if found.is_empty() {
            assert!(all == "all", "this Mesa does not know {family}");
            println!("## {name}, `{family}`: this Mesa does not know it\n");
            continue;
        }
        for (variant, statistics) in &found {
            let fault = fault(family, &Variant::parse(variant).expect("a variant"), statistics);
            faults.extend(fault.map(|fault| format!("{family}: {fault}")));
        }
        println!("## {name}, `{family}`, Mesa {version}\n\n{}", table(&found));
    }
    assert!(faults.is_empty(), "{} variants:\n{}", faults.len(), faults.join("\n"));
}
