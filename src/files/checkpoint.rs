//! Checkpoints of a run: folders `checkpoint-N`, where N is the number of optimizer steps done. Before the
//! first step they are `anchors-N`, where N is the number of prompts whose anchors are sampled. A folder gets
//! its name only when it is complete.
//!
//! File names are Hugging Face's where it has them: `trainer_state.json`, `adapter_model.safetensors` and
//! `adapter_config.json`, so that a LoRA run's checkpoint is an adapter that PEFT loads. `state.safetensors`
//! holds the trained weights, AdamW's moments and the run's other tensors; `checkpoint.json` holds the run's
//! [`Origin`], and every file's length and CRC-32.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{self as fs, File, sync_folder, temporary_folder};
use super::entries;
use crate::error::{Error, Result, setting};
use crate::train::State;

/// Prefix of checkpoints' names.
pub const PREFIX: &str = "checkpoint-";
/// Prefix of checkpoints' names before the first step, while anchors are sampled.
pub const DRAWN: &str = "anchors-";
const MANIFEST: &str = "checkpoint.json";
const RECORD: &str = "trainer_state.json";
const TENSORS: &str = "state.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Version of the format: increased when older checkpoints can no longer be resumed.
const FORMAT: u32 = 4;

/// What a run's results depend on besides its state. A checkpoint is resumed only by a run with the same
/// settings and inputs; a different adapter is a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// CRC-32 of the settings that results depend on.
    pub settings: String,
    /// Length and CRC-32 of each input, by its setting.
    pub inputs: BTreeMap<String, String>,
    /// The GPU, its driver, the precision, measured kernel choices and Aweigh's version.
    pub adapter: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    global_step: usize,
    origin: Origin,
    files: BTreeMap<String, Sum>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    bytes: usize,
    crc32: u32,
}

impl Sum {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len(), crc32: crc32fast::hash(bytes) }
    }
}

/// Writes a checkpoint into the run's folder, which is created if it is missing, and then removes all but the
/// last `keep`.
///
/// # Errors
/// [`Error::Io`]. If the checkpoint cannot be written, the earlier ones are kept.
pub fn write(
    run: &Path,
    state: &State,
    adapter_config: Option<&str>,
    origin: &Origin,
    keep: usize,
) -> Result<()> {
    let prefix = if state.trained().is_some() { PREFIX } else { DRAWN };
    let place = run.join(format!("{prefix}{}", state.step));
    let failed = |error| Error::io(&place, "write", error);
    fs::create_dir_all(run).map_err(failed)?;
    let temporary = temporary_folder(run).map_err(failed)?;
    let mut files = vec![(RECORD, &state.record[..]), (TENSORS, &state.tensors)];
    files.extend(state.adapter.as_deref().map(|bytes| (ADAPTER, bytes)));
    let adapter_config = adapter_config.filter(|_| state.adapter.is_some());
    files.extend(adapter_config.map(|text| (ADAPTER_CONFIG, text.as_bytes())));
    let manifest = Manifest {
        format: FORMAT,
        global_step: state.step,
        origin: origin.clone(),
        files: files.iter().map(|(name, bytes)| (name.to_string(), Sum::of(bytes))).collect(),
    };
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| failed(e.into()))?;
    files.push((MANIFEST, &manifest));
    for (name, bytes) in files {
        let mut file = File::create(temporary.path().join(name)).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    sync_folder(temporary.path()).map_err(failed)?;
    if fs::exists(&place) {
        // It is damaged: otherwise the run would have been resumed from it.
        fs::remove_dir_all(&place).map_err(failed)?;
    }
    fs::rename(temporary.path(), &place).map_err(failed)?;
    // The folder was renamed: there is nothing left to remove.
    let _ = temporary.keep();
    sync_folder(run).map_err(failed)?;
    for (_, old) in all(run)?.into_iter().rev().skip(keep) {
        fs::remove_dir_all(&old).map_err(|error| Error::io(&old, "remove", error))?;
    }
    Ok(())
}

/// Removes all checkpoints of a finished run.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_all(run: &Path) -> Result<()> {
    all(run)?
        .into_iter()
        .try_for_each(|(_, old)| fs::remove_dir_all(&old).map_err(|error| Error::io(&old, "remove", error)))
}

/// A checkpoint that was read.
pub struct Checkpoint {
    /// The state to resume from.
    pub state: State,
    /// What the run was started with.
    pub origin: Origin,
}

/// The last undamaged checkpoint of a run, if there is one; `warn` gets a message for each damaged later one.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed.
pub fn latest(run: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Checkpoint>> {
    for (_, place) in all(run)?.into_iter().rev() {
        match read(&place) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => warn(format!("{}: {error}; trying the checkpoint before it", place.display())),
        }
    }
    Ok(None)
}

fn read(place: &Path) -> io::Result<Checkpoint> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(place.join(MANIFEST))?)?;
    let wrong = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    if manifest.format != FORMAT {
        return Err(wrong(format!("written by another version of aweigh (format {})", manifest.format)));
    }
    let take = |name: &str| -> io::Result<Option<Vec<u8>>> {
        let Some(expected) = manifest.files.get(name) else { return Ok(None) };
        let bytes = fs::read(place.join(name))?;
        let found = Sum::of(&bytes);
        if found != *expected {
            return Err(wrong(format!("{name} is damaged: expected {expected:?}, found {found:?}")));
        }
        Ok(Some(bytes))
    };
    let needed = |name: &str| take(name)?.ok_or_else(|| wrong(format!("checkpoint.json lacks {name}")));
    let state = State {
        step: manifest.global_step,
        record: needed(RECORD)?,
        tensors: needed(TENSORS)?,
        adapter: take(ADAPTER)?,
    };
    Ok(Checkpoint { state, origin: manifest.origin })
}

/// The checkpoints in the run's folder, oldest first. The key is (false, prompts whose anchors are sampled)
/// before the first step, then (true, steps done).
fn all(run: &Path) -> Result<BTreeMap<(bool, usize), PathBuf>> {
    let step = |name: &String| {
        let of = |prefix| name.strip_prefix(prefix).and_then(|number: &str| number.parse().ok());
        let key = of(PREFIX).map(|step| (true, step)).or(of(DRAWN).map(|prompts| (false, prompts)))?;
        Some((key, run.join(name)))
    };
    Ok(entries(run, &setting("output_dir"))?.iter().filter_map(step).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::names;
    use super::*;

    fn state(step: usize) -> State {
        State { step, record: b"{}".to_vec(), tensors: vec![step as u8; 1000], adapter: Some(vec![7; 10]) }
    }

    fn origin() -> Origin {
        Origin { settings: "1".into(), inputs: BTreeMap::new(), adapter: "llvmpipe".into() }
    }

    #[test]
    fn the_last_ones_stay_and_a_damaged_one_is_passed_over() {
        let room = tempfile::tempdir().unwrap();
        let run = room.path().join("run");
        let drawn = State { tensors: Vec::new(), adapter: None, ..state(40) };
        write(&run, &drawn, Some("{}"), &origin(), 2).unwrap();
        assert_eq!(names(&run), ["anchors-40"]);
        let found = latest(&run, &mut |text| panic!("{text}")).unwrap().unwrap().state;
        assert_eq!((found.step, found.trained(), found.adapter), (40, None, None));
        for step in [0, 9, 10, 11] {
            write(&run, &state(step), Some("{}"), &origin(), 2).unwrap();
        }
        assert_eq!(names(&run), ["checkpoint-10", "checkpoint-11"]);
        let newest = |warnings: &mut Vec<String>| {
            latest(&run, &mut |text| warnings.push(text)).unwrap().map(|found| found.state)
        };
        let mut warnings = Vec::new();
        let found = newest(&mut warnings).unwrap();
        assert_eq!((found.step, found.tensors, found.adapter), (11, vec![11; 1000], Some(vec![7; 10])));
        assert!(warnings.is_empty());
        // Flip one bit.
        let place = run.join("checkpoint-11").join(TENSORS);
        let mut bytes = fs::read(&place).unwrap();
        bytes[500] ^= 1;
        fs::write(&place, bytes).unwrap();
        assert_eq!(newest(&mut warnings).unwrap().step, 10);
        assert!(warnings[0].contains("state.safetensors is damaged"), "{warnings:?}");
        fs::remove_file(run.join("checkpoint-10").join(MANIFEST)).unwrap();
        assert!(newest(&mut warnings).is_none());
        // The damaged checkpoint is written again.
        write(&run, &state(11), None, &origin(), 1).unwrap();
        assert_eq!(newest(&mut warnings).unwrap().step, 11);
        assert_eq!(names(&run), ["checkpoint-11"]);
        remove_all(&run).unwrap();
        assert!(names(&run).is_empty());
    }
}
