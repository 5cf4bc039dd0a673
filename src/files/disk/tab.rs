//! The disk of a browser's tab: one [`Store`], which belongs to the worker that mounts it.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::PART;
use super::slots::{Memory, Slots, in_memory};
use super::store::{Opened, Store};
use crate::model::{FileBytes, ReadBytes};

thread_local! {
    static STORE: RefCell<Option<Store>> = const { RefCell::new(None) };
}

/// Slots in memory, if nothing else is mounted.
const IN_MEMORY: usize = 1024;

/// Takes `slots` as the disk, from now on.
///
/// # Errors
/// As [`Store::open`].
pub fn mount(slots: Box<dyn Slots>) -> io::Result<()> {
    let store = Store::open(slots)?;
    STORE.with_borrow_mut(|own| *own = Some(store));
    Ok(())
}

fn with<T>(work: impl FnOnce(&mut Store) -> T) -> T {
    STORE.with_borrow_mut(|store| {
        work(store.get_or_insert_with(|| {
            Store::open(Box::new(Memory::new(IN_MEMORY))).expect("enough slots in memory")
        }))
    })
}

/// Number of files for which there is room: more slots have to be opened before it is 0.
pub fn spare() -> usize {
    with(|store| store.spare())
}

/// Whether there is something at `path`.
pub fn exists(path: &Path) -> bool {
    is_file(path) || is_dir(path)
}

/// Whether there is something at `path`.
///
/// # Errors
/// None.
pub fn try_exists(path: &Path) -> io::Result<bool> {
    Ok(exists(path))
}

/// Whether there is a file at `path`.
pub fn is_file(path: &Path) -> bool {
    with(|store| store.is_file(path))
}

/// Whether there is a folder at `path`.
pub fn is_dir(path: &Path) -> bool {
    with(|store| store.is_dir(path))
}

/// The size of the file at `path`, in bytes; 0 if there is none.
pub fn size(path: &Path) -> u64 {
    with(|store| store.open_file(path).and_then(|file| store.size(file))).unwrap_or(0)
}

/// The names in the folder `path`.
///
/// # Errors
/// As [`Store::names`].
pub fn names(path: &Path) -> io::Result<Vec<String>> {
    with(|store| store.names(path))
}

/// The path itself, if there is something: there are no links.
///
/// # Errors
/// Nothing at `path`.
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    if exists(path) { Ok(path.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// A file's bytes.
///
/// # Errors
/// As [`Store::read`].
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    with(|store| store.read(path.as_ref()))
}

/// A file's text.
///
/// # Errors
/// As [`Store::read`], and text that is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a file.
///
/// # Errors
/// As [`Store::create`] and [`Store::write_at`].
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    File::create(path.as_ref())?.write_all(bytes.as_ref())
}

/// Creates a folder.
///
/// # Errors
/// As [`Store::create_folders`].
pub fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    create_dir_all(path)
}

/// Creates a folder, and those above it.
///
/// # Errors
/// As [`Store::create_folders`].
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    with(|store| store.create_folders(path.as_ref()))
}

/// Removes a file.
///
/// # Errors
/// As [`Store::remove`].
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if is_file(path) { with(|store| store.remove(path)) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Removes an empty folder.
///
/// # Errors
/// A folder that is not empty; as [`Store::remove`].
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if names(path)?.is_empty() { remove_dir_all(path) } else { Err(io::ErrorKind::DirectoryNotEmpty.into()) }
}

/// Removes a folder, with all that is in it.
///
/// # Errors
/// As [`Store::remove`].
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if is_dir(path) { with(|store| store.remove(path)) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Renames a file or folder.
///
/// # Errors
/// As [`Store::rename`].
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    with(|store| store.rename(from.as_ref(), to.as_ref()))
}

/// Names are on the disk as soon as they are changed.
///
/// # Errors
/// None.
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Opens a file that exists, to write to it.
///
/// # Errors
/// As [`Store::open_file`].
pub fn open_to_write(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// An open file, read and written at its own position.
#[derive(Debug)]
pub struct File {
    opened: Opened,
    at: u64,
}

impl File {
    /// Creates an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { opened: with(|store| store.create(path.as_ref()))?, at: 0 })
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// As [`Store::open_file`].
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { opened: with(|store| store.open_file(path.as_ref()))?, at: 0 })
    }

    /// Sets the size in bytes.
    ///
    /// # Errors
    /// As [`Store::resize`].
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        with(|store| store.resize(self.opened, size))
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn sync_all(&self) -> io::Result<()> {
        with(|store| store.flush(self.opened))
    }
}

impl Read for File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = with(|store| store.read_at(self.opened, self.at, bytes))?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        with(|store| store.write_at(self.opened, self.at, bytes))?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(by) => (with(|store| store.size(self.opened))?, by),
            SeekFrom::Current(by) => (self.at, by),
        };
        self.at = from.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// A temporary name in the folder `above` that is free.
fn temporary(above: &Path) -> PathBuf {
    (0..).map(|n| above.join(format!("{PART}{n}.part"))).find(|path| !exists(path)).expect("a free number")
}

/// A temporary folder, removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder(PathBuf);

/// A temporary folder in `above`, removed when it is dropped.
///
/// # Errors
/// As [`Store::create_folders`].
pub fn temporary_folder(above: &Path) -> io::Result<TemporaryFolder> {
    let path = temporary(above);
    create_dir(&path)?;
    Ok(TemporaryFolder(path))
}

impl TemporaryFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Does not remove it.
    pub fn keep(self) -> PathBuf {
        let mut own = std::mem::ManuallyDrop::new(self);
        std::mem::take(&mut own.0)
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = remove_dir_all(&self.0);
    }
}

/// A temporary file, removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    file: File,
}

impl TemporaryFile {
    /// A new one in the folder `above`.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn new(above: &Path) -> io::Result<Self> {
        let path = temporary(above);
        Ok(Self { file: File::create(&path)?, path })
    }

    /// Flushes it to disk, and gives it the name `path`; a file with that name is replaced.
    ///
    /// # Errors
    /// As [`Store::rename`]; the file is then removed.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        rename(&self.path, path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // It has another name if it was kept.
        let _ = remove_file(&self.path);
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file whose parts are read when they are needed.
#[derive(Debug)]
pub struct Mapping {
    opened: Opened,
    size: usize,
    /// All of its bytes, if somebody needs them at once.
    whole: OnceLock<Vec<u8>>,
}

impl Mapping {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// As [`Store::open_file`].
    pub fn new(path: &Path) -> io::Result<Self> {
        let opened = with(|store| store.open_file(path))?;
        let size = in_memory(with(|store| store.size(opened))?)?;
        Ok(Self { opened, size, whole: OnceLock::new() })
    }

    /// The file.
    pub fn file(&self) -> FileBytes<'_> {
        FileBytes::Reader(self)
    }

    /// Whether the file was written to since it was opened: nobody else can.
    pub fn has_changed(&self) -> bool {
        false
    }
}

impl ReadBytes for Mapping {
    fn len(&self) -> usize {
        self.size
    }

    fn read(&self, start: usize, len: usize) -> io::Result<Vec<u8>> {
        with(|store| store.read_part(self.opened, start as u64, len))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    /// All bytes; none if they cannot be read, which is then an incomplete file.
    fn deref(&self) -> &[u8] {
        self.whole.get_or_init(|| self.read(0, self.size).unwrap_or_default())
    }
}

/// What tells whether a file was written to: only this worker writes, so its size will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// That of the file at `path`; `None` if there is none.
    pub fn of(path: &Path) -> Option<Self> {
        is_file(path).then(|| Self(size(path)))
    }
}

/// A lock that its file's folder is in use by something else in this tab. Other tabs cannot mount the store.
#[derive(Debug)]
pub struct Lock(PathBuf);

impl Lock {
    /// Takes the lock with the name `place`; `None` if it is taken.
    ///
    /// # Errors
    /// None.
    pub fn take(place: PathBuf) -> io::Result<Option<Self>> {
        Ok(with(|store| store.lock(&place)).then_some(Self(place)))
    }
}

impl Lock {
    /// As [`Lock::take`].
    ///
    /// # Errors
    /// None.
    pub fn take_lasting(place: PathBuf) -> io::Result<Option<Self>> {
        Self::take(place)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        with(|store| store.unlock(&self.0));
    }
}
