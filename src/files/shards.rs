//! The files that a model's weights are cut into.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};

pub(super) fn shards(index: &[u8], directory: &Path, file: &str) -> Result<Vec<String>> {
    let place = directory.join(file).display().to_string();
    let wrong = |found: String| {
        Error::input(&place, "\"weight_map\", from tensor names to file names", found, "fetch the file again")
    };
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|error| wrong(error.to_string()))?;
    let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| wrong("none".into()))?;
    let names: Option<BTreeSet<&str>> = map.values().map(|name| name.as_str()).collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(|| wrong("something else".into()))?;
    // A shard lies beside its index: a name that leads elsewhere is not one.
    match names.iter().find(|name| Path::new(name).file_name().is_none_or(|last| last != **name)) {
        Some(name) => Err(wrong(format!("the file name {name:?}"))),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}
