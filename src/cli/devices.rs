//! `aweigh devices`: the adapters, and what each can do.

use pollster::block_on;

use super::output::{Output, bytes, table};
use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, list_adapters};

/// List the GPUs that can be used.
///
/// The number in the first column, or a part of the name, is what --gpu takes.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  aweigh devices\n  aweigh devices --json")]
pub struct Args {}

/// Lists the adapters.
///
/// # Errors
/// [`crate::error::Error::NoAdapter`] where there is none.
pub fn run(_args: Args, output: &Output) -> Result<()> {
    let devices = block_on(list_adapters());
    if devices.is_empty() {
        return Err(Error::no_gpu());
    }
    let headers = [
        "gpu",
        "name",
        "kind",
        "backend",
        "driver",
        "largest binding",
        "workgroup",
        "subgroups",
        "f16",
        "kernels",
    ];
    let rows: Vec<_> = devices.iter().map(row).collect();
    output.result(table(&headers, &rows), &serde_json::json!({ "devices": devices }))
}

fn row(device: &AdapterSummary) -> Vec<String> {
    let subgroups = match device.subgroup_size {
        Some((least, most)) if least == most => least.to_string(),
        Some((least, most)) => format!("{least} to {most}"),
        None => "none".into(),
    };
    vec![
        device.index.to_string(),
        device.name.clone(),
        device.kind.clone(),
        device.backend.clone(),
        device.driver.clone(),
        bytes(device.max_binding),
        bytes(u64::from(device.workgroup_memory)),
        subgroups,
        if device.shader_f16 { "yes" } else { "no" }.into(),
        format!("{:?}", device.tier).to_lowercase(),
    ]
}
