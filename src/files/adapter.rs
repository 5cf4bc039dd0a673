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
    /// The adapter as the library takes it.
    pub fn bytes(&self) -> AdapterBytes<'_> {
        AdapterBytes { name: &self.name, config: &self.config, weights: &self.weights }
    }

    /// What is odd about it on `model`, a sentence each: keys that are not known, another base model.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for an adapter that is not supported.
    pub fn remarks(&self, model: &Model) -> Result<Vec<String>> {
        let adapter = self.bytes().parse()?;
        let place = format!("{}/adapter_config.json", self.name);
        let mut all = Vec::new();
        if !adapter.unknown.is_empty() {
            let keys = adapter.unknown.join(", ");
            all.push(format!("{place}: keys that are not known, and have no effect here: {keys}"));
        }
        if let Some(base) = adapter.base.filter(|base| !model.may_be(base)) {
            let name = model.bytes().name;
            all.push(format!("{place}: it was made for {base}; on {name} it may do something else"));
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

    /// Opens the adapter in `directory`; `flag` says who named it.
    ///
    /// # Errors
    /// [`crate::Error::Input`] names what is missing from the directory.
    pub fn open(directory: &Path, flag: &str) -> Result<Self> {
        need_folder(directory, flag, "an adapter's directory")?;
        let config = need_file(directory, flag, "adapter_config.json")?;
        let weights = need_file(directory, flag, "adapter_model.safetensors")?;
        Ok(Self {
            name: directory.display().to_string(),
            config: super::read(&config, flag)?,
            weights: super::map(&weights, flag)?,
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
