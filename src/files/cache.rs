//! Files kept for each GPU adapter in the user's cache directory: measured kernel choices, and the driver's
//! compiled pipelines.

use std::path::{Path, PathBuf};

use super::disk as fs;
use super::{WholeFile, write_whole};
use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Tuning, instruction_sets};

/// Environment variable with a directory for these files, instead of one in the user's cache directory.
const DIRECTORY: &str = "AWEIGH_CACHE_DIR";

/// The path of a GPU adapter's file in `folder`, made from the adapter's name, backend and driver; `None` if
/// the system has no cache directory.
fn path(summary: &AdapterSummary, folder: &str, extension: &str) -> Option<PathBuf> {
    let base = match std::env::var_os(DIRECTORY) {
        Some(directory) => PathBuf::from(directory),
        None => user_cache()?.join("aweigh"),
    };
    let whole = format!("{} {} {}", summary.name, summary.backend, summary.driver);
    let words: Vec<&str> =
        whole.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    Some(base.join(folder).join(format!("{}.{extension}", words.join("-").to_lowercase())))
}

/// The user's cache directory.
#[cfg(not(target_arch = "wasm32"))]
fn user_cache() -> Option<PathBuf> {
    dirs::cache_dir()
}

/// A browser keeps compiled shaders itself, and its adapters have no names that tell them apart.
#[cfg(target_arch = "wasm32")]
fn user_cache() -> Option<PathBuf> {
    None
}

fn create_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    create_folder_of(path)?;
    write_whole(path, bytes)
}

/// The kernel choices measured on this adapter; `None` if there are none or their file cannot be read.
pub fn tuning(summary: &AdapterSummary) -> Option<Tuning> {
    let path = path(summary, "tuning", "json")?;
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(tuning) => Some(tuning),
        Err(error) => {
            log::warn!(
                "{}: invalid kernel choices ({error}); measure again with `aweigh devices --tune`",
                path.display()
            );
            None
        }
    }
}

/// The file for measured kernel choices, opened before the measurement so that an unwritable place is found
/// early. The old file stays until [`WholeFile::commit`].
///
/// # Errors
/// [`Error::Io`], and [`Error::Input`] where there is no cache directory.
pub fn tuning_file(summary: &AdapterSummary) -> Result<WholeFile> {
    let path = path(summary, "tuning", "json").ok_or_else(|| {
        Error::input("the user's cache directory", "one", "none", format!("set {DIRECTORY} to a directory"))
    })?;
    create_folder_of(&path)?;
    WholeFile::create(&path)
}

/// How products read their operands, as measured on an adapter.
#[derive(serde::Serialize, serde::Deserialize)]
struct Operands {
    /// The version of this crate whose kernels were measured.
    version: String,
    /// The processor's instruction sets: a driver's name does not tell them.
    instruction_sets: Vec<String>,
    /// The least number of rows of products that read them through textures; `None` if none does.
    texels_from: Option<usize>,
}

/// [`Gpu::known_texels_from`](crate::gpu::Gpu::known_texels_from) of an earlier process with this adapter,
/// version and processor; `None` if there was none.
pub fn texels_from(summary: &AdapterSummary) -> Option<usize> {
    let text = fs::read(path(summary, "operands", "json")?).ok()?;
    let found: Operands = serde_json::from_slice(&text).ok()?;
    let same = found.version == env!("CARGO_PKG_VERSION") && found.instruction_sets == instruction_sets();
    same.then(|| found.texels_from.unwrap_or(usize::MAX))
}

/// Saves it for later processes. A failure is only a warning: it is measured again.
pub fn save_texels_from(summary: &AdapterSummary, rows: usize) {
    let Some(path) = path(summary, "operands", "json") else { return };
    let texels_from = Some(rows).filter(|rows| *rows < usize::MAX);
    let instruction_sets = instruction_sets().into_iter().map(String::from).collect();
    let operands = Operands { version: env!("CARGO_PKG_VERSION").into(), instruction_sets, texels_from };
    let text = serde_json::to_vec(&operands).expect("numbers and texts");
    if let Err(error) = save(&path, &text) {
        log::warn!("how operands are read fastest is not kept: {error}");
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// The pipelines that were compiled on this adapter earlier; `None` if there are none or their checksum does
/// not match: drivers do not check the data that they are given.
pub fn pipelines(summary: &AdapterSummary) -> Option<Vec<u8>> {
    let bytes = fs::read(path(summary, "pipelines", "bin")?).ok()?;
    let (sum, data) = bytes.split_first_chunk()?;
    (checksum(data) == *sum).then(|| data.to_vec())
}

/// Saves pipelines for later processes. A failure is only a warning: they are compiled again.
pub fn save_pipelines(summary: &AdapterSummary, data: &[u8]) {
    let Some(path) = path(summary, "pipelines", "bin") else { return };
    if let Err(error) = save(&path, &[&checksum(data), data].concat()) {
        log::warn!("compiled kernels are not cached: {error}");
    }
}
