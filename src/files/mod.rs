//! Reads files with clear error messages, and writes files and folders completely or not at all.

mod adapter;
pub mod cache;
pub mod checkpoint;
mod companions;
#[cfg(feature = "hub")]
pub mod hub;
mod lines;
mod model;
mod need;
mod run_folder;
mod shards;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result, setting};

pub use adapter::AdapterFiles;
pub use lines::Lines;
pub use model::{Model, ModelFiles};
pub use run_folder::{EVENTS, RunFolder, TRAIN_COPY};

/// A file's bytes with its name for messages: the form in which the library takes data.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as the user wrote it.
    pub origin: String,
    /// Its bytes, as stored (a .gz is not unpacked).
    pub bytes: Vec<u8>,
}

impl Source {
    /// Reads the file at `path`; `place` names it in messages.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(path: &Path, place: &str) -> Result<Self> {
        Ok(Self { origin: path.display().to_string(), bytes: read(path, place)? })
    }
}

/// A file's bytes.
///
/// # Errors
/// [`Error::Input`] if there is no such file (`place` names it in messages), [`Error::Io`] for other
/// failures.
pub fn read(path: &Path, place: &str) -> Result<Vec<u8>> {
    is_file(path, place)?;
    fs::read(path).map_err(|error| Error::io(path, "read", error))
}

/// A file's text.
///
/// # Errors
/// As [`read`], and [`Error::Input`] for text that is not UTF-8.
pub fn read_text(path: &Path, place: &str) -> Result<String> {
    String::from_utf8(read(path, place)?).map_err(|error| {
        let found = format!("an invalid byte at position {}", error.utf8_error().valid_up_to());
        Error::input(path.display(), "UTF-8 text", found, "save the file as UTF-8")
    })
}

/// A file's bytes, mapped into memory instead of read: pages are loaded on first use, which suits weights.
///
/// # Errors
/// As [`read`].
pub fn map(path: &Path, place: &str) -> Result<Mapped> {
    is_file(path, place)?;
    let file = File::open(path).map_err(|error| Error::io(path, "read", error))?;
    let began = stamp(&file);
    // SAFETY: the mapping is read-only and private to this process. The remaining risk is another program
    // that truncates or rewrites the file during a run: as with every reader of mapped weights, users must
    // not do that. Our own writers only replace files by renaming.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file) };
    let map = map.map_err(|error| Error::io(path, "map", error))?;
    Ok(Mapped { map, file, path: path.into(), began })
}

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
    began: Option<(u64, SystemTime)>,
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Mapped {
    /// Fails if the file was written to since it was mapped. A new file renamed into its place is no problem:
    /// the old one stays mapped.
    ///
    /// # Errors
    /// [`Error::Input`] names the file.
    pub fn check_unchanged(&self) -> Result<()> {
        if stamp(&self.file) == self.began {
            return Ok(());
        }
        let fix = "start again, and do not change a model's files while a run uses them; replace them by \
                   renaming new files";
        Err(Error::input(
            self.path.display(),
            "a file that has not changed since it was opened",
            "a changed file",
            fix,
        ))
    }
}

/// Size in bytes and time of the last change.
fn stamp(file: &File) -> Option<(u64, SystemTime)> {
    let data = file.metadata().ok()?;
    Some((data.len(), data.modified().ok()?))
}

fn is_file(path: &Path, place: &str) -> Result<()> {
    let fix = "check the path; relative paths start at the current folder";
    let wrong = |found| Err(Error::input(place, format!("a file at {}", path.display()), found, fix));
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => wrong("a folder"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong("nothing"),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// Writes a file completely or not at all: `bytes` go to a temporary file beside it, which is then renamed.
///
/// # Errors
/// [`Error::Io`]; an older file at `path` is then untouched.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes).map_err(|error| Error::io(path, "write", error))?;
    file.commit()
}

/// Refuses an output file that exists (unless `overwrite`), or whose folder does not exist.
///
/// # Errors
/// [`Error::Input`] names the place and the file.
pub fn refuse_existing(path: &Path, place: &str, overwrite: bool) -> Result<()> {
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => Err(Error::input(
            place,
            "a file's name",
            format!("the folder {}", path.display()),
            "name a file in it",
        )),
        Ok(data) if data.is_file() && !overwrite => {
            let found = format!("{}, which exists", path.display());
            Err(Error::input(
                place,
                "a file that does not exist yet",
                found,
                format!("choose another name, or set {}", setting("overwrite")),
            ))
        }
        Err(_) if !parent(path).is_dir() => {
            let found = format!("no folder {}", parent(path).display());
            let fix = "make the folder, or choose another";
            Err(Error::input(place, "a file in a folder that exists", found, fix))
        }
        _ => Ok(()),
    }
}

/// A file that appears under its name only when [`WholeFile::commit`] is called. If it is dropped before,
/// nothing is left.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    /// The file that is written: where `path` is a link, what it points to.
    target: PathBuf,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Temporary(BufWriter<NamedTempFile>),
    /// A pipe or a device, which cannot be renamed over.
    Direct(BufWriter<File>),
}

impl WholeFile {
    /// Starts the file at `path`, whose folder must exist.
    ///
    /// # Errors
    /// [`Error::Io`] if its folder cannot be written to.
    pub fn create(path: &Path) -> Result<Self> {
        // Follow a link, so that the file it points to is replaced and not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let special = fs::metadata(&target).is_ok_and(|data| !data.is_file());
        let inner = if special {
            File::options().write(true).open(&target).map(|file| Inner::Direct(BufWriter::new(file)))
        } else {
            temporary(0o666).tempfile_in(parent(&target)).map(|file| Inner::Temporary(BufWriter::new(file)))
        };
        let inner = inner.map_err(|error| Error::io(path, "create", error))?;
        Ok(Self { path: path.to_owned(), target, inner })
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the bytes to disk, then gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is then left behind.
    pub fn commit(self) -> Result<()> {
        let finish = match self.inner {
            Inner::Direct(mut file) => file.flush(),
            Inner::Temporary(file) => {
                file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
                    file.as_file().sync_all()?;
                    file.persist(&self.target).map_err(|error| error.error)?;
                    Ok(())
                })
            }
        };
        finish.map_err(|error| Error::io(&self.path, "write", error))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Temporary(file) => file.write(bytes),
            Inner::Direct(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Temporary(file) => file.flush(),
            Inner::Direct(file) => file.flush(),
        }
    }
}

/// A folder that appears under its name, complete, only when [`NewFolder::commit`] is called. If it is
/// dropped before, nothing is left.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    temporary: TempDir,
}

impl NewFolder {
    /// Starts the folder `path`, which must be empty or not exist. Missing parent folders are created on
    /// commit.
    ///
    /// # Errors
    /// [`Error::Input`] if `path` is a file or a folder that is not empty (`place` names it in messages).
    pub fn create(path: &Path, place: &str) -> Result<Self> {
        refuse_filled(path, place, "choose another folder, or remove that one")?;
        let above = nearest_existing(path);
        let temporary = temporary_folder(&above).map_err(|error| Error::io(path, "create", error))?;
        Ok(Self { target: path.into(), temporary })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is then left behind.
    pub fn commit(self) -> Result<()> {
        let failed = |error| Error::io(&self.target, "create", error);
        fs::create_dir_all(parent(&self.target)).map_err(failed)?;
        if self.target.is_dir() {
            fs::remove_dir(&self.target).map_err(failed)?;
        }
        fs::rename(self.temporary.path(), &self.target).map_err(failed)?;
        // The folder was renamed: there is nothing left to remove.
        let _ = self.temporary.keep();
        Ok(())
    }
}

fn refuse_filled(path: &Path, place: &str, fix: &str) -> Result<()> {
    if entries(path, place)?.is_empty() {
        return Ok(());
    }
    let found = format!("{}, which exists and is not empty", path.display());
    Err(Error::input(place, "a folder that does not exist yet", found, fix))
}

/// The names in the folder `path`; empty if there is no such folder.
///
/// # Errors
/// [`Error::Input`] if `path` is a file, [`Error::Io`] if the folder cannot be listed.
pub fn entries(path: &Path, place: &str) -> Result<Vec<String>> {
    let list = match fs::read_dir(path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(_) if path.is_file() => {
            let found = format!("the file {}", path.display());
            return Err(Error::input(place, "a folder's name", found, "choose another name"));
        }
        Err(error) => return Err(Error::io(path, "list", error)),
    };
    list.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| Error::io(path, "list", error))
}

/// The folder that `path` is in: `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The nearest existing ancestor of `path`: it is on the disk that `path` will be on, so a rename works.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new(".")).into()
}

/// Prefix of temporary names.
const PART: &str = ".aweigh-";

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

fn temporary_folder(above: &Path) -> io::Result<TempDir> {
    temporary(0o777).tempdir_in(above)
}

#[cfg(test)]
mod testing {
    use std::path::Path;

    /// The names in a folder, in order.
    pub fn names(path: &Path) -> Vec<String> {
        let mut names = super::entries(path, "--x").unwrap();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::testing::names;
    use super::*;

    #[test]
    fn a_file_is_whole_or_absent() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("a.jsonl");
        write_whole(&path, b"one").unwrap();
        let mut second = WholeFile::create(&path).unwrap();
        second.write_all(b"half").unwrap();
        drop(second);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(room.path()), ["a.jsonl"]);
        write_whole(&path, b"two").unwrap();
        assert_eq!(read(&path, "--x").unwrap(), b"two");
        assert!(refuse_existing(&path, "--output", false).unwrap_err().to_string().contains("overwrite"));
        refuse_existing(&path, "--output", true).unwrap();
        let nowhere = room.path().join("none/a");
        assert!(write_whole(&nowhere, b"").is_err());
        assert!(refuse_existing(&nowhere, "--output", true).unwrap_err().to_string().contains("no folder"));
        #[cfg(unix)]
        write_whole(Path::new("/dev/null"), b"x").unwrap();
    }

    #[test]
    fn a_new_folder_is_whole_or_absent() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("deep/model");
        let folder = NewFolder::create(&path, "--output").unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        drop(folder);
        assert!(names(room.path()).is_empty());
        let folder = NewFolder::create(&path, "--output").unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        folder.commit().unwrap();
        assert_eq!(names(&path), ["config.json"]);
        assert_eq!(names(room.path()), ["deep"]);
        assert!(NewFolder::create(&path, "--output").unwrap_err().to_string().contains("is not empty"));
    }

    #[test]
    fn a_missing_file_is_named_with_its_flag() {
        let text = read(Path::new("no/such.jsonl"), "--train").unwrap_err().to_string();
        assert!(text.starts_with("--train: expected a file at no/such.jsonl, found nothing"), "{text}");
        assert!(read(Path::new("."), "--train").unwrap_err().to_string().contains("found a folder"));
    }
}
