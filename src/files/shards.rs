//! The shards of a model's weights.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};

/// The file names of the shards that `index` lists, sorted. `file` is the index's own name in `directory`.
pub(super) fn shards(index: &[u8], directory: &Path, file: &str) -> Result<Vec<String>> {
    let place = directory.join(file).display().to_string();
    let wrong = |found: String| {
        Error::input(&place, "\"weight_map\", from tensor names to file names", found, "download it again")
    };
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|error| wrong(error.to_string()))?;
    let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| wrong("none".into()))?;
    let names: Option<BTreeSet<&str>> = map.values().map(|name| name.as_str()).collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(|| wrong("no file names".into()))?;
    // Shards are in the folder of their index: names with a path are refused.
    match names.iter().find(|name| Path::new(name).file_name().is_none_or(|last| last != **name)) {
        Some(name) => Err(wrong(format!("{name:?}, which is not a file name"))),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}
