//! A trained judge's files.

use std::path::Path;

use serde_json::Value;

use crate::messages::Messages;
use crate::open::fetch;
use aweigh::error::{Error, Result};
use aweigh::files::{AdapterFiles, Model, disk};
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, ModelBytes, Training};

/// The flags that a judge was trained with, in its folder.
pub const ARGS: &str = "judge_args.json";
/// Written last into a judge's folder: its figures, and how it is used.
pub const JUDGE: &str = "judge.json";

/// The opened files of a trained judge.
pub struct Judge {
    model: Model,
    adapter: Option<AdapterFiles>,
    /// Maximum tokens of prompt and answer that the judge reads; of a longer text it reads the last ones.
    pub max_length: usize,
}

/// `max_length` of a judge without judge.json, one that Aweigh did not train.
const MAX_LENGTH: usize = 512;

impl Judge {
    /// Opens the judge in `folder`. `model`, if given, replaces the base model that the judge's adapter
    /// names.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without a judge; `flag` is the flag that named it.
    pub fn open(folder: &Path, model: Option<&str>, flag: &str, messages: &dyn Messages) -> Result<Self> {
        // judge.json is written last: a judge that was cut off before that has the flags of its training.
        let kept: Value = [JUDGE, ARGS]
            .iter()
            .find_map(|name| disk::read(folder.join(name)).ok())
            .map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap_or_default());
        let max_length = kept["max_length"].as_u64().map_or(MAX_LENGTH, |length| length as usize);
        let whole = folder.join("model");
        if disk::is_dir(&whole) {
            return Ok(Self { model: Model::open(&whole.display().to_string())?, adapter: None, max_length });
        }
        let of_run = folder.join("adapter");
        let adapter = AdapterFiles::open(if disk::is_dir(&of_run) { &of_run } else { folder }, flag)?;
        let base: Value = serde_json::from_slice(&adapter.config).unwrap_or_default();
        let base = model.or(base["base_model_name_or_path"].as_str()).ok_or_else(|| {
            let fix = "write it there as base_model_name_or_path, or give it to `aweigh judge score` with \
                       --model";
            Error::input(&adapter.name, "the name of its base model", "none", fix)
        })?;
        Ok(Self { model: fetch(base, true, &mut messages.downloads())?, adapter: Some(adapter), max_length })
    }

    /// The judge's model, for the library.
    pub fn bytes(&self) -> ModelBytes<'_> {
        ModelBytes { judge: true, ..self.model.bytes() }
    }

    /// Loads the judge onto `gpu`.
    ///
    /// # Errors
    /// As [`Decoder::load`], and for an adapter without a head.
    pub fn decoder(&self, gpu: &Gpu) -> Result<Decoder> {
        match &self.adapter {
            None => self.bytes().decoder(gpu, Training::None),
            Some(adapter) => self.bytes().decoder_with(gpu, Some(adapter.bytes())),
        }
    }
}
