//! What is kept for an adapter in the user's cache directory: measured kernel choices, and the driver's
//! compiled pipelines.

use std::path::{Path, PathBuf};

use super::{WholeFile, write_whole};
use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Tuning};

/// Names another directory for the files than the user's cache directory.
const DIRECTORY: &str = "AWEIGH_CACHE_DIR";

/// An adapter's file in `folder`, by its name, backend and driver; `None` where the system names no cache
/// directory.
fn path(summary: &AdapterSummary, folder: &str, extension: &str) -> Option<PathBuf> {
    let base = match std::env::var_os(DIRECTORY) {
        Some(directory) => PathBuf::from(directory),
        None => dirs::cache_dir()?.join("aweigh"),
    };
    let whole = format!("{} {} {}", summary.name, summary.backend, summary.driver);
    let words: Vec<&str> =
        whole.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    Some(base.join(folder).join(format!("{}.{extension}", words.join("-").to_lowercase())))
}

fn create_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    create_folder_of(path)?;
    write_whole(path, bytes)
}

/// What was measured on this adapter; `None` where nothing was, or nothing that can be read: it is a cache.
pub fn tuning(summary: &AdapterSummary) -> Option<Tuning> {
    let path = path(summary, "tuning", "json")?;
    let text = std::fs::read(&path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(tuning) => Some(tuning),
        Err(error) => {
            log::warn!(
                "{}: no kernel choices ({error}); measure again with `aweigh devices --tune`",
                path.display()
            );
            None
        }
    }
}

/// A file to keep what is measured in, which is known to be writable before the work: what it held stays
/// until then.
///
/// # Errors
/// [`Error::Io`], and [`Error::Input`] where there is no cache directory.
pub fn tuning_file(summary: &AdapterSummary) -> Result<WholeFile> {
    let path = path(summary, "tuning", "json").ok_or_else(|| {
        Error::input("the user's cache directory", "one", "none", format!("name a directory in {DIRECTORY}"))
    })?;
    create_folder_of(&path)?;
    WholeFile::create(&path)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// The pipelines that were compiled on this adapter before; `None` where there are none, or where the file is
/// not as it was written: drivers trust what they are given.
pub fn pipelines(summary: &AdapterSummary) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path(summary, "pipelines", "bin")?).ok()?;
    let (sum, data) = bytes.split_first_chunk()?;
    (checksum(data) == *sum).then(|| data.to_vec())
}

/// Keeps pipelines for the next time; what cannot be kept is compiled again.
pub fn save_pipelines(summary: &AdapterSummary, data: &[u8]) {
    let Some(path) = path(summary, "pipelines", "bin") else { return };
    if let Err(error) = save(&path, &[&checksum(data), data].concat()) {
        log::warn!("compiled kernels are not kept: {error}");
    }
}
