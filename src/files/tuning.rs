//! Where measured kernel choices are kept: a file for each adapter, in the user's cache directory.

use std::path::PathBuf;

use super::write_whole;
use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Tuning};

/// Names another directory for the files than the user's cache directory.
const DIRECTORY: &str = "AWEIGH_CACHE_DIR";

/// The file of an adapter with its driver; `None` where the system names no cache directory.
pub fn path(summary: &AdapterSummary) -> Option<PathBuf> {
    let base = match std::env::var_os(DIRECTORY) {
        Some(directory) => PathBuf::from(directory),
        None => dirs::cache_dir()?.join("aweigh"),
    };
    let whole = format!("{} {} {}", summary.name, summary.backend, summary.driver);
    let words: Vec<&str> =
        whole.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    Some(base.join("tuning").join(format!("{}.json", words.join("-").to_lowercase())))
}

/// What was measured on this adapter; `None` where nothing was, or nothing that can be read: it is a cache.
pub fn load(summary: &AdapterSummary) -> Option<Tuning> {
    let path = path(summary)?;
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

/// Keeps what was measured; returns the file.
///
/// # Errors
/// [`Error::Io`], and [`Error::Input`] where there is no cache directory.
pub fn save(summary: &AdapterSummary, tuning: &Tuning) -> Result<PathBuf> {
    let path = path(summary).ok_or_else(|| {
        Error::input("the user's cache directory", "one", "none", format!("name a directory in {DIRECTORY}"))
    })?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    }
    let text = serde_json::to_vec_pretty(tuning).unwrap_or_default();
    write_whole(&path, &text)?;
    Ok(path)
}
