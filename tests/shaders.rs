//! Every compiled variant of every shader, without a GPU: it parses, needs no optional capability, fits
//! WebGPU's default limits, agrees with its Rust parameter block, and can be translated for Vulkan, Metal,
//! DX12 and browsers. `AWEIGH_TRANSLATED` names a folder for the translations, which `cargo xtask metal`,
//! `fxc`, `dxc` and `tint` compile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aweigh::kernels::{ParamBlock, param_blocks};
use aweigh::shader::{Lanes, SOURCES, Variant, browser_text, parse, permutations};
use naga::back::hlsl::ShaderModel;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Module, back};

/// One below WebGPU's 8: wgpu's Metal backend needs one more for the buffers' sizes.
const STORAGE_BUFFERS: usize = 7;
/// WebGPU's default `maxComputeInvocationsPerWorkgroup`.
const INVOCATIONS: u32 = 256;
/// WebGPU's default `maxComputeWorkgroupStorageSize`, in bytes.
const WORKGROUP_BYTES: u32 = 16 * 1024;

fn modules() -> Vec<(Variant, Module)> {
    let all = permutations().expect("shaders/permutations");
    all.into_iter()
        .map(|variant| {
            let module = parse(&variant, Lanes::InOrder).unwrap_or_else(|message| panic!("{message}"));
            (variant, module)
        })
        .collect()
}

/// Validates with WebGPU's basic capabilities only: no 64-bit types; f16, subgroups and cooperative matrices
/// only in the variants that declare them. naga counts `unpack2x16float`, which every WebGPU implementation
/// has, as a capability of its own.
fn validate(variant: &Variant, module: &Module) -> ModuleInfo {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, needs_subgroups(variant));
    capabilities.set(Capabilities::SHADER_FLOAT16, variant.defines.contains_key("HALF"));
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, needs_cooperative_matrices(variant));
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(module)
        .unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string("")))
}

/// Whether the shader is only compiled where the adapter has subgroups.
fn needs_subgroups(variant: &Variant) -> bool {
    variant.shader.ends_with("_subgroup") || needs_cooperative_matrices(variant)
}

/// Whether the shader is only compiled where the adapter has cooperative matrices.
fn needs_cooperative_matrices(variant: &Variant) -> bool {
    variant.shader == "matmul_coop"
}

/// Writes a translation into the folder that `AWEIGH_TRANSLATED` names.
fn keep(variant: &Variant, extension: &str, text: &str) {
    let Some(folder) = std::env::var_os("AWEIGH_TRANSLATED").map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(format!("{variant}.{extension}")), text).expect("written");
}

fn layouter(variant: &Variant, module: &Module) -> Layouter {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).unwrap_or_else(|e| panic!("{variant}: {e}"));
    layouter
}

/// Stems of the shaders that have an entry point.
fn kernels() -> BTreeSet<String> {
    SOURCES.iter().map(|(name, _)| name.to_string()).filter(|name| !name.starts_with("common/")).collect()
}

#[test]
fn variants_are_valid_without_optional_capabilities() {
    for (variant, module) in modules() {
        validate(&variant, &module);
    }
}

#[test]
fn variants_are_listed_once() {
    let names: Vec<String> = modules().iter().map(|(variant, _)| variant.to_string()).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(names.len(), distinct.len());
}

#[test]
fn variants_stay_inside_the_default_limits() {
    for (variant, module) in modules() {
        let [entry] = &module.entry_points[..] else {
            panic!("{variant}: more or less than one entry point")
        };
        assert_eq!(entry.name, "main", "{variant}");
        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(invocations <= INVOCATIONS, "{variant}: {invocations} invocations");
        let layouter = layouter(&variant, &module);
        let (mut bound, mut storage, mut uniforms, mut shared) = (BTreeSet::new(), 0, 0, 0);
        for (_, global) in module.global_variables.iter() {
            match global.space {
                AddressSpace::Storage { .. } => {
                    let binding = global.binding.as_ref().expect("a storage buffer has a binding");
                    assert_eq!(binding.group, 0, "{variant}");
                    assert!(bound.insert(binding.binding), "{variant}: binding {} twice", binding.binding);
                    storage += 1;
                }
                AddressSpace::Uniform => {
                    uniforms += 1;
                    assert_eq!(
                        global.binding.as_ref().map(|b| (b.group, b.binding)),
                        Some((0, 0)),
                        "{variant}"
                    );
                }
                AddressSpace::Handle => {
                    let binding = global.binding.as_ref().expect("a texture has a binding");
                    assert_eq!(binding.group, 0, "{variant}");
                    assert!(bound.insert(binding.binding), "{variant}: binding {} twice", binding.binding);
                }
                AddressSpace::WorkGroup => shared += layouter[global.ty].size.next_multiple_of(16),
                _ => {}
            }
        }
        assert_eq!(uniforms, 1, "{variant}: parameter blocks");
        assert!(storage <= STORAGE_BUFFERS, "{variant}: {storage} storage buffers");
        // Kernels bind their tensors in the order of these numbers; the parameter block has number 0. Only
        // what is added to a product leaves gaps.
        let has = |flag: &str| variant.defines.contains_key(flag);
        let added = [(4, "BIAS"), (5, "RESIDUAL"), (6, "TEXELS"), (6, "ADAPTERS"), (7, "ADAPTERS")];
        let added = added.into_iter().filter(|(_, flag)| has(flag));
        let expected: Vec<u32> = match variant.shader.starts_with("mat") {
            true => (1..=3).chain(added.map(|(number, _)| number)).collect(),
            false => (1..=bound.len() as u32).collect(),
        };
        assert!(bound.iter().eq(&expected), "{variant}: bindings {bound:?}");
        assert!(shared <= WORKGROUP_BYTES, "{variant}: {shared} bytes of workgroup memory");
    }
}

/// The uniform block's size, and the name, offset and size of each field, as WGSL lays it out.
fn reflected(variant: &Variant, module: &Module) -> (usize, Vec<(String, usize, usize)>) {
    let layouter = layouter(variant, module);
    let (_, global) = module
        .global_variables
        .iter()
        .find(|(_, global)| global.space == AddressSpace::Uniform)
        .unwrap_or_else(|| panic!("{variant}: no parameter block"));
    let naga::TypeInner::Struct { members, span } = &module.types[global.ty].inner else {
        panic!("{variant}: the parameter block is no struct")
    };
    let field = |member: &naga::StructMember| {
        let name = member.name.clone().unwrap_or_default();
        (name, member.offset as usize, layouter[member.ty].size as usize)
    };
    (*span as usize, members.iter().map(field).collect())
}

fn block_of<'a>(all: &'a [ParamBlock], shader: &str) -> &'a ParamBlock {
    let mut found = all.iter().filter(|block| block.shaders.contains(&shader));
    let block = found.next().unwrap_or_else(|| panic!("{shader} has no parameter block in Rust"));
    assert!(found.next().is_none(), "{shader} has two parameter blocks in Rust");
    block
}

#[test]
fn parameter_blocks_equal_their_rust_twins() {
    let all = param_blocks();
    for (variant, module) in modules() {
        let block = block_of(&all, &variant.shader);
        let fields: Vec<_> =
            block.fields.iter().map(|&(name, at, size)| (name.to_string(), at, size)).collect();
        let (size, mut found) = reflected(&variant, &module);
        // The recorder itself adds the first workgroup's number, except for kernels with one workgroup.
        let divisible = found.pop_if(|(name, ..)| name == "first_group");
        match ["clip_scale", "sentinel"].contains(&&variant.shader[..]) {
            true => assert_eq!((divisible, size), (None, block.size), "{variant}"),
            false => assert_eq!(divisible, Some(("first_group".into(), block.size, 4)), "{variant}"),
        }
        assert_eq!(fields, found, "{variant}");
    }
}

#[test]
fn every_shader_is_listed_compiled_and_described() {
    let kernels = kernels();
    let compiled: BTreeSet<String> = modules().into_iter().map(|(variant, _)| variant.shader).collect();
    assert_eq!(kernels, compiled, "shaders/ and shaders/permutations");
    let described: BTreeSet<String> =
        param_blocks().iter().flat_map(|block| block.shaders).map(|name| name.to_string()).collect();
    assert_eq!(kernels, described, "shaders/ and kernels::param_blocks()");

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let stems = |path: &Path, prefix: &str| -> Vec<String> {
        let entries =
            std::fs::read_dir(path).expect("shaders/ is readable").map(|e| e.expect("an entry").path());
        let files = entries.filter(|path| path.extension().is_some_and(|e| e == "wgsl"));
        files.map(|p| format!("{prefix}{}", p.file_stem().unwrap_or_default().to_string_lossy())).collect()
    };
    let mut files: BTreeSet<String> = stems(&folder, "").into_iter().collect();
    files.extend(stems(&folder.join("common"), "common/"));
    let sources: BTreeSet<String> = SOURCES.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(files, sources, "the files and SOURCES");
}

#[test]
fn variants_translate_to_spirv() {
    for (variant, module) in modules() {
        let info = validate(&variant, &module);
        let mut options = back::spv::Options::default();
        if needs_subgroups(&variant) {
            options.lang_version = (1, 3);
        }
        if needs_cooperative_matrices(&variant) {
            options.lang_version = (1, 5);
        }
        let words =
            back::spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant}: {e}"));
        assert_eq!(words.first(), Some(&0x0723_0203), "{variant}: SPIR-V's magic number");
    }
}

/// As wgpu's Metal backend translates them. Metal has matrices of 8 x 8, and wgpu reports no others there.
#[test]
fn variants_translate_to_metal() {
    for (variant, module) in modules().into_iter().filter(|(v, _)| !v.defines.contains_key("MAT16")) {
        let info = validate(&variant, &module);
        // Every binding at its own slot, and the hidden buffer of sizes after them.
        let mut entry = back::msl::EntryPointResources::default();
        for (_, global) in module.global_variables.iter() {
            let Some(binding) = global.binding.as_ref() else { continue };
            let mutable = match global.space {
                AddressSpace::Storage { access } => access.contains(naga::StorageAccess::STORE),
                _ => false,
            };
            let number = Some(binding.binding as u8);
            let target = match global.space {
                AddressSpace::Handle => back::msl::BindTarget { texture: number, ..Default::default() },
                _ => back::msl::BindTarget { buffer: number, mutable, ..Default::default() },
            };
            entry.resources.insert(*binding, target);
        }
        entry.sizes_buffer = Some(entry.resources.len() as u8);
        let options = back::msl::Options {
            lang_version: if needs_subgroups(&variant) { (2, 4) } else { (2, 0) },
            per_entry_point_map: [("main".to_string(), entry)].into(),
            fake_missing_bindings: false,
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let (text, translated) = back::msl::write_string(&module, &info, &options, &Default::default())
            .unwrap_or_else(|e| panic!("{variant}: {e}"));
        for name in translated.entry_point_names {
            let name = name.unwrap_or_else(|e| panic!("{variant}: {e}"));
            assert!(text.contains(&name), "{variant}: no {name} in the Metal source");
        }
        keep(&variant, "metal", &text);
    }
}

/// For browsers. WebGPU has no cooperative matrices.
#[test]
fn variants_translate_to_wgsl() {
    for (variant, module) in modules().into_iter().filter(|(variant, _)| !needs_cooperative_matrices(variant))
    {
        let text = browser_text(&module).unwrap_or_else(|message| panic!("{variant}: {message}"));
        let enabled = text.starts_with("enable subgroups;");
        assert_eq!(enabled, needs_subgroups(&variant), "{variant}: the directive for subgroups");
        keep(&variant, "wgsl", &text);
    }
}

/// As wgpu's DX12 backend translates them. `AWEIGH_HLSL_FOR` says for which compiler: `fxc`, which takes
/// those of shader model 5.1, or `dxc`; with ` checked` for a debug build, whose indices are checked.
#[test]
fn variants_translate_to_hlsl() {
    let purpose = std::env::var("AWEIGH_HLSL_FOR").unwrap_or_else(|_| "fxc".into());
    let (dxc, checked) = (purpose.starts_with("dxc"), purpose.ends_with("checked"));
    // HLSL has no cooperative matrices, and wgpu reports none on DX12.
    for (variant, module) in modules().into_iter().filter(|(variant, _)| !needs_cooperative_matrices(variant))
    {
        let info = validate(&variant, &module);
        // Where wgpu keeps the number of workgroups, for which HLSL has no built-in value.
        let special = back::hlsl::BindTarget { space: 255, ..Default::default() };
        let mut options = back::hlsl::Options {
            special_constants_binding: Some(special),
            zero_initialize_workgroup_memory: false,
            restrict_indexing: checked,
            force_loop_bounding: false,
            ..Default::default()
        };
        if needs_subgroups(&variant) {
            options.shader_model = ShaderModel::V6_0;
        }
        if dxc || variant.defines.contains_key("HALF") {
            options.shader_model = ShaderModel::V6_2;
        }
        let pipeline = back::hlsl::PipelineOptions::default();
        let mut text = String::new();
        let translated = back::hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{variant}: {e}"));
        for name in translated.entry_point_names {
            let name = name.unwrap_or_else(|e| panic!("{variant}: {e}"));
            assert!(text.contains(&name), "{variant}: no {name} in the HLSL source");
        }
        // DXC's namespaces, which naga does not know: they cannot be names of bindings.
        for name in ["dx", "vk"] {
            let taken = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            assert!(!taken, "{variant}: the name {name} is reserved in HLSL");
        }
        if dxc || options.shader_model == ShaderModel::V5_1 {
            keep(&variant, "hlsl", &text);
        }
    }
}
