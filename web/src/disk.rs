//! The browser's storage as the library's disk, and files that come from outside.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aweigh::Error;
use aweigh::files::disk::slots::Slots;
use aweigh::files::disk::{self, File, TemporaryFolder};
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

/// A model that comes from outside, piece by piece: one file, or a folder of files. It has its name when it
/// is whole; if it is freed before, nothing is left.
#[wasm_bindgen]
pub struct Arrival {
    /// Where its files are until then.
    room: TemporaryFolder,
    name: String,
    is_folder: bool,
    file: Option<(PathBuf, File)>,
}

#[wasm_bindgen]
impl Arrival {
    /// Begins the model `name`: a folder's name, or that of its only file.
    ///
    /// # Errors
    /// A full disk; a name that is none.
    #[wasm_bindgen(constructor)]
    pub fn new(name: &str, is_folder: bool) -> Result<Arrival, JsValue> {
        plain(name)?;
        let place = Path::new(ADDED);
        let made = disk::create_dir_all(place).and_then(|()| disk::temporary_folder(place));
        let room = made.map_err(|error| thrown(Error::io(place, "write to", error)))?;
        Ok(Self { room, name: name.to_owned(), is_folder, file: None })
    }

    /// Begins its file `name`.
    ///
    /// # Errors
    /// As [`Arrival::new`].
    pub fn begin(&mut self, name: &str) -> Result<(), JsValue> {
        plain(name)?;
        let path = self.room.path().join(name);
        let file = File::create(&path).map_err(|error| thrown(Error::io(&path, "create", error)))?;
        self.file = Some((path, file));
        Ok(())
    }

    /// Adds bytes to the file that was begun last.
    ///
    /// # Errors
    /// A full disk; no file was begun.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JsValue> {
        let (path, file) = self.file.as_mut().ok_or_else(|| JsValue::from_str("no file was begun"))?;
        file.write_all(bytes).map_err(|error| thrown(Error::io(&*path, "write", error)))
    }

    /// Gives the model its name, or that name with a number if there is such a model. Returns its path.
    ///
    /// # Errors
    /// A full disk.
    pub fn keep(self) -> Result<String, JsValue> {
        let (stem, ending) = match self.name.rsplit_once('.').filter(|_| !self.is_folder) {
            Some((stem, ending)) => (stem, format!(".{ending}")),
            None => (self.name.as_str(), String::new()),
        };
        let numbered = (2..).map(|number| format!("{stem}-{number}{ending}"));
        let mut paths =
            [self.name.clone()].into_iter().chain(numbered).map(|name| Path::new(ADDED).join(name));
        let path = paths.find(|path| !disk::exists(path)).expect("some number is free");
        let failed = |error| thrown(Error::io(&path, "write", error));
        if self.is_folder {
            disk::rename(self.room.path(), &path).map_err(failed)?;
            let _ = self.room.keep();
        } else {
            let (file, _) = self.file.as_ref().ok_or_else(|| JsValue::from_str("no file was begun"))?;
            disk::rename(file, &path).map_err(failed)?;
        }
        Ok(path.display().to_string())
    }
}

/// Fails for a name that could leave the folder.
fn plain(name: &str) -> Result<(), JsValue> {
    let fits = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
    let odd = || thrown(Error::input("the model", "a file's name", format!("{name:?}"), "rename it"));
    if fits { Ok(()) } else { Err(odd()) }
}
