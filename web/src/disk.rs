//! The browser's storage as the library's disk, and files that come from outside.

use std::io::{self, Write};
use std::path::PathBuf;

use aweigh::Error;
use aweigh::files::disk::store::Slots;
use aweigh::files::disk::{self, TemporaryFile};
use aweigh_app::app::models::ADDED;
use wasm_bindgen::prelude::*;

use crate::thrown;

#[wasm_bindgen]
extern "C" {
    /// The worker's open files: `Slots` in storage.js.
    pub type Handles;
    #[wasm_bindgen(method, catch)]
    fn count(this: &Handles) -> Result<usize, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn read(this: &Handles, slot: usize, at: f64, bytes: &mut [u8]) -> Result<usize, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn write(this: &Handles, slot: usize, at: f64, bytes: &[u8]) -> Result<usize, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn size(this: &Handles, slot: usize) -> Result<f64, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn resize(this: &Handles, slot: usize, size: f64) -> Result<(), JsValue>;
    #[wasm_bindgen(method, catch)]
    fn flush(this: &Handles, slot: usize) -> Result<(), JsValue>;
}

/// What the browser says of a failure.
fn failed(error: JsValue) -> io::Error {
    let error = js_sys::Error::from(error);
    let (name, message) = (String::from(error.name()), String::from(error.message()));
    let kind = match name.as_str() {
        "QuotaExceededError" => io::ErrorKind::StorageFull,
        "NoModificationAllowedError" => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{message} ({name})"))
}

struct Storage(Handles);

impl Slots for Storage {
    fn count(&self) -> usize {
        self.0.count().unwrap_or(0)
    }

    fn read(&self, slot: usize, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(slot, at as f64, bytes).map_err(failed)
    }

    fn write(&mut self, slot: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.0.write(slot, at as f64, bytes).map_err(failed)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn size(&self, slot: usize) -> io::Result<u64> {
        Ok(self.0.size(slot).map_err(failed)? as u64)
    }

    fn resize(&mut self, slot: usize, size: u64) -> io::Result<()> {
        self.0.resize(slot, size as f64).map_err(failed)
    }

    fn flush(&mut self, slot: usize) -> io::Result<()> {
        self.0.flush(slot).map_err(failed)
    }
}

/// Takes the worker's open files as the disk. Without this, files are in memory, and gone with the tab.
///
/// # Errors
/// Those of the browser.
#[wasm_bindgen]
pub fn mount(handles: Handles) -> Result<(), JsValue> {
    disk::mount(Box::new(Storage(handles)))
        .map_err(|error| thrown(Error::io("the browser's storage", "read", error)))
}

/// For how many more files there is room.
#[wasm_bindgen]
pub fn spare() -> usize {
    disk::spare()
}

/// A file that comes from outside, piece by piece. It has its name when it is whole; if it is freed before,
/// nothing is left.
#[wasm_bindgen]
pub struct Incoming {
    path: PathBuf,
    file: TemporaryFile,
}

#[wasm_bindgen]
impl Incoming {
    /// Begins the file `name` of the model in the folder `folder`, or of one that is a single file if that is
    /// empty.
    ///
    /// # Errors
    /// A full disk; a name that is none.
    #[wasm_bindgen(constructor)]
    pub fn new(folder: &str, name: &str) -> Result<Incoming, JsValue> {
        let plain = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c != '/' && c != '\\')
        };
        if !plain(name) || !folder.is_empty() && !plain(folder) {
            let fix = "rename it";
            return Err(thrown(Error::input("the file", "a file's name", format!("{name:?}"), fix)));
        }
        let place = PathBuf::from(ADDED).join(folder);
        let made = disk::create_dir_all(&place).and_then(|()| TemporaryFile::new(&place));
        let path = place.join(name);
        let file = made.map_err(|error| thrown(Error::io(&path, "create", error)))?;
        Ok(Self { path, file })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JsValue> {
        self.file.write_all(bytes).map_err(|error| thrown(Error::io(&self.path, "write", error)))
    }

    /// Gives the file its name, and returns its path.
    ///
    /// # Errors
    /// A full disk.
    pub fn keep(self) -> Result<String, JsValue> {
        self.file.persist(&self.path).map_err(|error| thrown(Error::io(&self.path, "write", error)))?;
        Ok(self.path.display().to_string())
    }
}

/// Removes what an interrupted copy left.
pub fn sweep() {
    let folder = PathBuf::from(ADDED);
    let within = |folder: &PathBuf| {
        let names = disk::names(folder).unwrap_or_default();
        names.into_iter().map(|name| folder.join(name)).collect::<Vec<_>>()
    };
    let top = within(&folder);
    let deeper = top.iter().filter(|path| disk::is_dir(path)).flat_map(within).collect::<Vec<_>>();
    for path in top.iter().chain(&deeper) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            // It is found again next time.
            let _ = disk::remove_file(path);
        }
    }
}

/// Removes a model that came from outside; its project stays.
///
/// # Errors
/// Those of the browser.
#[wasm_bindgen]
pub fn remove_model(name: &str) -> Result<(), JsValue> {
    let path = PathBuf::from(name);
    if !path.starts_with(ADDED) || path.components().count() != 2 {
        let fix = "reload the page";
        return Err(thrown(Error::input("the model", "one that was dropped here", name, fix)));
    }
    let removed = if disk::is_dir(&path) { disk::remove_dir_all(&path) } else { disk::remove_file(&path) };
    removed.map_err(|error| thrown(Error::io(&path, "remove", error)))
}
