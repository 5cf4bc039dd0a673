//! WGSL as browsers take it.

use naga::Module;
use naga::back::wgsl::{WriterFlags, write_string};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// The text of a module for a browser. naga writes no directive for subgroups, which browsers ask for. They
/// also reject subgroup operations where they cannot prove that all of a subgroup come there: these kernels
/// see to that, but by values from memory, which no compiler knows.
///
/// # Errors
/// For an invalid module, or one with what WGSL cannot express: naga's message.
pub fn browser_text(module: &Module) -> Result<String, String> {
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(module)
        .map_err(|error| error.emit_to_string(""))?;
    let text = write_string(module, &info, WriterFlags::empty()).map_err(|error| error.to_string())?;
    Ok(match text.contains("subgroup") {
        true => format!("enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n{text}"),
        false => text,
    })
}
