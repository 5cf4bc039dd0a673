//! The operating system's disk.

use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;

use super::PART;
use crate::model::FileBytes;

pub use std::fs::{
    File, canonicalize, create_dir, create_dir_all, exists as try_exists, read, read_to_string, remove_dir,
    remove_dir_all, remove_file, rename, write,
};
pub use tempfile::TempDir as TemporaryFolder;

/// Whether there is something at `path`.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Whether there is a file at `path`: not a folder, and not a device.
pub fn is_file(path: &Path) -> bool {
    path.is_file()
}

/// Whether there is a folder at `path`.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// The size of the file at `path`, in bytes; 0 if there is none.
pub fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

/// The names in the folder `path`.
///
/// # Errors
/// Those of the operating system.
pub fn names(path: &Path) -> io::Result<Vec<String>> {
    let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    std::fs::read_dir(path)?.map(name).collect()
}

/// Opens a file that exists, to write to it.
///
/// # Errors
/// Those of the operating system.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// Flushes the folder's list of names to disk, on systems that do this for folders.
///
/// # Errors
/// Those of the operating system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Builds temporary files or folders with the permissions of any new one, unlike tempfile's default: on Unix
/// `mode`, less the process's umask.
fn temporary(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PART).suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// A temporary folder in `above`, removed when it is dropped.
///
/// # Errors
/// Those of the operating system.
pub fn temporary_folder(above: &Path) -> io::Result<TemporaryFolder> {
    temporary(0o777).tempdir_in(above)
}

/// A temporary file, removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFile(NamedTempFile);

impl TemporaryFile {
    /// A new one in the folder `above`.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(above: &Path) -> io::Result<Self> {
        temporary(0o666).tempfile_in(above).map(Self)
    }

    /// Flushes it to disk, and gives it the name `path`; a file with that name is replaced.
    ///
    /// # Errors
    /// Those of the operating system; the file is then removed.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        self.0.as_file().sync_all()?;
        self.0.persist(path).map_err(|error| error.error).map(drop)
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A file's bytes in memory, loaded on first use.
#[derive(Debug)]
pub struct Mapping {
    map: memmap2::Mmap,
    file: File,
    began: Option<Stamp>,
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let began = stamp(&file);
        // SAFETY: the mapping is read-only and private to this process. The remaining risk is another program
        // that truncates or rewrites the file during a run: as with every reader of mapped weights, users
        // must not do that. Our own writers only replace files by renaming.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self { map, file, began })
    }

    /// The file.
    pub fn file(&self) -> FileBytes<'_> {
        FileBytes::Memory(&self.map)
    }

    /// Whether the file was written to since it was mapped. A new file renamed into its place does not count:
    /// the old one stays mapped.
    pub fn has_changed(&self) -> bool {
        stamp(&self.file) != self.began
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

fn stamp(file: &File) -> Option<Stamp> {
    Stamp::new(&file.metadata().ok()?)
}

/// What tells whether a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    time: SystemTime,
}

impl Stamp {
    /// That of the file at `path`; `None` if there is none.
    pub fn of(path: &Path) -> Option<Self> {
        Self::new(&std::fs::metadata(path).ok()?)
    }

    fn new(data: &std::fs::Metadata) -> Option<Self> {
        Some(Self { bytes: data.len(), time: data.modified().ok()? })
    }
}

/// A lock that its file's folder is in use. The operating system releases it when the process ends, also
/// after a crash.
#[derive(Debug)]
pub struct Lock {
    place: PathBuf,
    removes: bool,
    _held: File,
}

impl Lock {
    /// Takes the lock with the file `place`; `None` if it is taken. The file is removed while the lock is
    /// held, so that another one's is never removed.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn take(place: PathBuf) -> io::Result<Option<Self>> {
        Self::with(place, true)
    }

    /// As [`Lock::take`], but the file stays.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn take_lasting(place: PathBuf) -> io::Result<Option<Self>> {
        Self::with(place, false)
    }

    fn with(place: PathBuf, removes: bool) -> io::Result<Option<Self>> {
        let held = File::create(&place)?;
        match held.try_lock() {
            Ok(()) => Ok(Some(Self { place, removes, _held: held })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            // Some network drives do not support locks: then there is none.
            Err(std::fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                log::warn!("{}: {error}", place.display());
                Ok(Some(Self { place, removes, _held: held }))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.removes {
            let _ = remove_file(&self.place);
        }
    }
}
