//! What a run was begun from, so that it is gone on with only from the same.

use std::path::Path;

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files::checkpoint::{self, Origin};
use crate::gpu::Gpu;
use crate::train::{Inputs, State};

/// CRC-32 of the settings that a run's result depends on. What is read counts by its content, not by its
/// path.
pub(super) fn settings_sum(config: &RunConfig) -> String {
    let mut own = config.clone();
    (own.output, own.gpu) = Default::default();
    (own.model.model, own.data.train) = Default::default();
    // These only say how memory is used.
    own.model.offload = false;
    (own.anchors.max_num_seqs, own.train.recompute) = Default::default();
    if own.lora.lora_dropout == 0.0 {
        own.train.max_tokens_per_batch = None;
    }
    sum(&own)
}

fn sum(of: &impl serde::Serialize) -> String {
    format!("CRC-32 {:08x}", crc32fast::hash(&serde_json::to_vec(of).unwrap_or_default()))
}

/// What a run of `config` on `inputs` begins from.
pub(super) fn origin(config: &RunConfig, inputs: &Inputs, gpu: &Gpu) -> Origin {
    let (summary, precision) = (gpu.summary(), gpu.precision());
    let tuned = match gpu.tuning() {
        Some(tuning) => format!(", kernels as measured ({})", sum(tuning)),
        None => String::new(),
    };
    let version = env!("CARGO_PKG_VERSION");
    Origin {
        settings: settings_sum(config),
        inputs: inputs.sums(),
        adapter: format!(
            "{} ({}, {}) in {precision:?}{tuned}, aweigh {version}",
            summary.name, summary.backend, summary.driver
        ),
    }
}

/// The last whole checkpoint in `folder`; `None` where there is none yet. `warn` is told of damaged ones, and
/// of a GPU that is another than the run's.
///
/// # Errors
/// [`Error::Input`] where the run was begun from something else than `own`.
pub(super) fn last_state(folder: &Path, own: &Origin, warn: &mut dyn FnMut(String)) -> Result<Option<State>> {
    let Some(found) = checkpoint::latest(folder, warn)? else { return Ok(None) };
    let fix = "bring back what the run was begun with, or begin a new one";
    let differs = |place: String, then: &str, now: &str| Err(Error::input(place, then, now, fix));
    if found.origin.settings != own.settings {
        let place = folder.join("config.toml").display().to_string();
        return differs(place, "the settings that the run was begun with", "others");
    }
    for (flag, then) in &found.origin.inputs {
        let now = own.inputs.get(flag).map_or("nothing", String::as_str);
        if now != then {
            return differs(format!("{flag}, as the run was begun"), then, now);
        }
    }
    if found.origin.adapter != own.adapter {
        warn(format!(
            "the run was on {} and goes on on {}: sums may be taken in another order, so figures may differ \
             in their last digits, and with them answers that are sampled from now on",
            found.origin.adapter, own.adapter
        ));
    }
    Ok(Some(found.state))
}
