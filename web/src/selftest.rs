//! The self-test: does this browser compute correctly on this GPU?

use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;
use web_time::Instant;

use aweigh::gpu::{Gpu, Options};
use aweigh::selftest::{Depth, Report, checks};

use crate::{VERSION, thrown};

/// What the browser tells of the machine.
#[derive(Debug, Serialize, Deserialize)]
struct Machine {
    processor: String,
    cores: usize,
    instruction_sets: Vec<String>,
    system: String,
}

/// What the page shows: the verdict in words, and the report to send.
#[derive(Serialize)]
struct Told {
    verdict: String,
    report: Report<Machine>,
}

/// Runs all checks. `machine` is a [`Machine`] as JSON, and `gpu` the GPU's name: the library does not learn
/// them. `told` gets each check's result and the number of all checks, as JSON. Returns what `aweigh selftest
/// --json` prints, with a verdict in words.
///
/// # Errors
/// No GPU, one whose limits are too small, or a `machine` of another form.
#[wasm_bindgen]
pub async fn selftest(quick: bool, machine: &str, gpu: String, told: Function) -> Result<String, JsValue> {
    let machine: Machine =
        serde_json::from_str(machine).map_err(|error| js_sys::Error::new(&error.to_string()))?;
    let (all, depth) = (checks(), if quick { Depth::Quick } else { Depth::Full });
    let device = Gpu::open(&Options::default()).await.map_err(thrown)?;
    let began = Instant::now();
    let mut rows = Vec::new();
    for check in &all {
        let row = check.report(&device, depth).await;
        let text = serde_json::json!({ "row": row, "all": all.len() }).to_string();
        told.call1(&JsValue::NULL, &text.into())?;
        rows.push(row);
    }
    let mut summary = device.summary().clone();
    if summary.name.is_empty() {
        summary.name = gpu;
    }
    let rows = (rows, began.elapsed().as_secs_f64());
    let report = Report::new((VERSION, machine), (&summary, device.precision()), quick, rows);
    Ok(serde_json::to_string(&Told { verdict: report.verdict(), report }).unwrap_or_default())
}
