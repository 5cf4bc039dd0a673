//! The result files of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use web_time::Instant;

use crate::data::{LengthCounts, clock};
use crate::error::{Error, Result};
use crate::eval::stats::Estimate;
use crate::files::{Model, disk, write_whole};
use crate::gpu::{Gpu, Purpose};
use crate::loss::Constants;
use crate::model::Decoder;
use crate::train::{AnchorCounts, Metrics, Outcome, StopReason};

/// The content of `summary.json`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Why the run ended.
    pub reason: StopReason,
    /// `reason` in words.
    pub reason_text: String,
    /// Number of optimizer steps taken.
    pub steps: usize,
    /// The number of steps after which the kept state was taken.
    pub kept_step: usize,
    /// Metrics of the first evaluation, before the first step.
    pub before: Option<Metrics>,
    /// Metrics of the kept state.
    pub after: Option<Metrics>,
    /// Counts of the sampled anchors.
    pub anchors: AnchorCounts,
    /// The share of bad ones among the training prompts' anchors, if the run looked for them.
    pub bad_anchors: Option<Estimate>,
    /// Alpha and beta, if they were measured (`beta = "auto"`).
    pub constants: Option<Constants>,
    /// Counts of the training rows that were kept, cut or left out.
    pub examples: LengthCounts,
    /// Packed tokens trained on.
    pub num_tokens: usize,
    /// Packed tokens per second of training steps.
    pub tokens_per_second: f64,
    /// Wall-clock seconds; of a resumed run, since it was last resumed.
    pub seconds: f64,
    /// When the run ended, in UTC.
    pub finished: Option<String>,
    /// The GPU's name.
    pub adapter: String,
    /// Number of trained parameters.
    pub trainable_parameters: usize,
    /// The planned peak of GPU memory, in bytes.
    pub memory_planned: u64,
    /// The peak of GPU memory, in bytes.
    pub memory_peak: u64,
    /// The peak of each purpose, in bytes.
    pub memory_peaks: BTreeMap<Purpose, u64>,
    /// The report of the checks of `gpu.paranoid`.
    pub checks: Option<String>,
}

impl Summary {
    pub(super) fn new(
        gpu: &Gpu,
        outcome: &Outcome,
        (examples, planned): (LengthCounts, u64),
        started: Instant,
    ) -> Self {
        let peaks = gpu.ledger().by_purpose().into_iter().map(|(purpose, usage)| (purpose, usage.peak));
        Self {
            reason: outcome.reason,
            reason_text: outcome.reason.to_string(),
            steps: outcome.steps,
            kept_step: outcome.kept_step,
            before: outcome.before.clone(),
            after: outcome.after.clone(),
            anchors: outcome.anchors,
            bad_anchors: outcome.bad_anchors,
            constants: outcome.constants,
            examples,
            num_tokens: outcome.num_tokens,
            tokens_per_second: outcome.num_tokens as f64 / outcome.train_seconds.max(1e-9),
            seconds: started.elapsed().as_secs_f64(),
            finished: clock::now().and_then(|now| clock::strftime("%Y-%m-%dT%H:%M:%SZ", now).ok()),
            adapter: gpu.summary().name.clone(),
            trainable_parameters: outcome.decoder.layout().count(),
            memory_planned: planned,
            memory_peak: gpu.ledger().total().peak,
            memory_peaks: peaks.collect(),
            checks: gpu.witness().map(|witness| witness.report()),
        }
    }
}

/// Writes a LoRA adapter in PEFT's format into `folder`, which is created if it is missing: `weights` from
/// [`Decoder::trained_safetensors`], and adapter_config.json, which names `base` as the base model.
///
/// # Errors
/// [`Error::Input`] for a decoder without an adapter, [`Error::Io`] for errors of the file system.
pub fn write_adapter(folder: &Path, decoder: &Decoder, weights: &[u8], base: &str) -> Result<()> {
    let config = decoder.adapter_config(base).ok_or_else(|| {
        Error::input(folder.display(), "a decoder with an adapter", "none", "train with lora.enabled = true")
    })?;
    let failed = |error| Error::io(folder, "create", error);
    disk::create_dir_all(folder).map_err(failed)?;
    write_whole(&folder.join("adapter_model.safetensors"), weights)?;
    write_whole(&folder.join("adapter_config.json"), config.as_bytes())
}

/// Writes a run's trained weights into `folder`: adapter/ in PEFT's format, or model/ in Hugging Face's.
/// `weights` come from [`Decoder::trained_safetensors`]. Returns the path of adapter/ or model/.
///
/// # Errors
/// Errors of the file system.
pub fn write_result(folder: &Path, model: &Model, decoder: &Decoder, weights: &[u8]) -> Result<PathBuf> {
    if decoder.lora().is_some() {
        let path = folder.join("adapter");
        write_adapter(&path, decoder, weights, model.bytes().name)?;
        return Ok(path);
    }
    let path = folder.join("model");
    disk::create_dir_all(&path).map_err(|error| Error::io(&path, "create", error))?;
    write_whole(&path.join("model.safetensors"), weights)?;
    let config = decoder.config();
    let judge = config.classes.map(|_| config.classifier_architecture());
    model.write_companions(&path, Some("float32"), judge.as_deref())?;
    Ok(path)
}
