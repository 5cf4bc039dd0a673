//! A LoRA adapter's directory.

use std::path::Path;

use super::need::{need_file, need_folder};
use super::{Mapped, Model};
use crate::error::Result;
use crate::model::AdapterBytes;

/// The files of a LoRA adapter in PEFT's layout.
#[derive(Debug)]
pub struct AdapterFiles {
    /// The directory as the user wrote it, for messages.
    pub name: String,
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub weights: Mapped,
}

impl AdapterFiles {
    /// The adapter in the form that the library takes.
    pub fn bytes(&self) -> AdapterBytes<'_> {
        AdapterBytes { name: &self.name, config: &self.config, weights: &self.weights }
    }

    /// Warnings about using it with `model`, one sentence each: unknown keys, a different base model.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for an adapter that is not supported.
    pub fn remarks(&self, model: &Model) -> Result<Vec<String>> {
        let adapter = self.bytes().parse()?;
        let place = format!("{}/adapter_config.json", self.name);
        let mut all = Vec::new();
        if !adapter.unknown.is_empty() {
            let keys = adapter.unknown.join(", ");
            all.push(format!("{place}: unknown keys, which have no effect: {keys}"));
        }
        if let Some(base) = adapter.base.filter(|base| !model.may_be(base)) {
            let name = model.bytes().name;
            all.push(format!("{place}: it was made for {base}; on {name} it may behave differently"));
        }
        Ok(all)
    }

    /// As [`Model::check_unchanged`].
    ///
    /// # Errors
    /// [`crate::Error::Input`] names the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.weights.check_unchanged()
    }

    /// Opens the adapter in `directory`; `place` names it in messages.
    ///
    /// # Errors
    /// [`crate::Error::Input`] names what is missing from the directory.
    pub fn open(directory: &Path, place: &str) -> Result<Self> {
        need_folder(directory, place, "an adapter's directory")?;
        let config = need_file(directory, place, "adapter_config.json")?;
        let weights = need_file(directory, place, "adapter_model.safetensors")?;
        Ok(Self {
            name: directory.display().to_string(),
            config: super::read(&config, place)?,
            weights: super::map(&weights, place)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let room = tempfile::tempdir().unwrap();
        let error = AdapterFiles::open(room.path(), "--adapter").unwrap_err().to_string();
        assert!(error.contains("expected adapter_config.json in it"), "{error}");
    }
}
