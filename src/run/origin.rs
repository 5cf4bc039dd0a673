//! The settings and inputs that a run was started with: it is only resumed with the same.

use std::path::{Path, PathBuf};

use crate::config::{BUILT_IN_EXAMPLES, ReferenceSource, RunConfig};
use crate::error::{Error, Result, setting};
use crate::files::checkpoint::{self, Origin};
use crate::gpu::Gpu;
use crate::train::{Inputs, State};

/// CRC-32 of the settings that a run's result depends on. Paths of inputs do not count: their content is
/// compared instead.
pub(super) fn settings_sum(config: &RunConfig) -> String {
    let mut own = config.clone();
    let read = (own.output.num_completions, own.output.completion_tokens);
    (own.output, own.gpu) = Default::default();
    // The stop rule reads these answers.
    (own.output.num_completions, own.output.completion_tokens) = read;
    (own.model.model, own.data.train) = Default::default();
    let optional = [
        &mut own.model.adapter,
        &mut own.model.chat_template,
        &mut own.data.eval,
        &mut own.anchors.samples_file,
        &mut own.retain.data,
    ];
    optional.into_iter().flatten().for_each(PathBuf::clear);
    if let Some(examples) = own.anchors.anchor_examples.0.as_mut().filter(|name| *name != BUILT_IN_EXAMPLES) {
        examples.clear();
    }
    for reference in [&mut own.reference.positive, &mut own.reference.negative] {
        if let ReferenceSource::Checkpoint(path) = reference {
            path.clear();
        }
    }
    // These only change how memory is used.
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

/// The origin of a run with `config` on `inputs`.
pub(super) fn origin(config: &RunConfig, inputs: &Inputs, gpu: &Gpu) -> Result<Origin> {
    let (summary, precision) = (gpu.summary(), gpu.precision());
    let tuned = match gpu.tuning() {
        Some(tuning) => format!(", kernels as measured ({})", sum(tuning)),
        None => String::new(),
    };
    let version = env!("CARGO_PKG_VERSION");
    Ok(Origin {
        settings: settings_sum(config),
        inputs: inputs.sums()?,
        adapter: format!(
            "{} ({}, {}) in {precision:?}{tuned}, aweigh {version}",
            summary.name, summary.backend, summary.driver
        ),
    })
}

/// The last undamaged checkpoint in `folder`; `None` if there is none. `warn` gets warnings about damaged
/// checkpoints, and about a GPU that differs from the run's.
///
/// # Errors
/// [`Error::Input`] if the run was started with settings or inputs that differ from `own`.
pub(super) fn last_state(folder: &Path, own: &Origin, warn: &mut dyn FnMut(String)) -> Result<Option<State>> {
    let Some(found) = checkpoint::latest(folder, warn)? else { return Ok(None) };
    let fix = "restore what the run was started with, or start a new run";
    let differs = |place: String, then: &str, now: &str| Err(Error::input(place, then, now, fix));
    if found.origin.settings != own.settings {
        let place = folder.join("config.toml").display().to_string();
        return differs(place, "the settings that the run was started with", "different ones");
    }
    for (key, then) in &found.origin.inputs {
        let now = own.inputs.get(key).map_or("nothing", String::as_str);
        if now != then {
            return differs(format!("{}, as when the run was started", setting(key)), then, now);
        }
    }
    if found.origin.adapter != own.adapter {
        warn(format!(
            "the run was on {} and resumes on {}: sums may be computed in another order, so metrics may \
             differ in their last digits, and answers sampled from now on may differ too",
            found.origin.adapter, own.adapter
        ));
    }
    Ok(Some(found.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_inputs_are_does_not_count() {
        let at = |folder: &str| {
            let mut config = RunConfig::default();
            config.data.train = format!("{folder}/train.jsonl").into();
            config.data.eval = Some(format!("{folder}/eval.jsonl").into());
            config.anchors.samples_file = Some(format!("{folder}/samples.jsonl").into());
            config.anchors.anchor_examples.0 = Some(format!("{folder}/examples.json"));
            config.retain.data = Some(format!("{folder}/ordinary.jsonl").into());
            config.model.adapter = Some(format!("{folder}/adapter").into());
            config.reference.negative = ReferenceSource::Checkpoint(format!("{folder}/older").into());
            config
        };
        assert_eq!(settings_sum(&at("here")), settings_sum(&at("there")));
        let mut other = at("here");
        other.data.eval = None;
        assert_ne!(settings_sum(&at("here")), settings_sum(&other), "an input that is missing");
        other = at("here");
        other.anchors.anchor_examples.0 = Some(BUILT_IN_EXAMPLES.into());
        assert_ne!(settings_sum(&at("here")), settings_sum(&other), "the built-in examples");
        other = at("here");
        other.reference.negative = ReferenceSource::Initial;
        assert_ne!(settings_sum(&at("here")), settings_sum(&other));
        other = at("here");
        other.train.learning_rate = Some(2.0);
        assert_ne!(settings_sum(&at("here")), settings_sum(&other));
    }
}
