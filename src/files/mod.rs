//! Reads files with clear error messages, and writes files and folders completely or not at all.

mod adapter;
pub mod cache;
pub mod checkpoint;
mod companions;
pub mod disk;
#[cfg(feature = "hub")]
pub mod hub;
mod lines;
mod model;
mod need;
mod run_folder;
mod shards;

use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use self::disk::{self as fs, File, TemporaryFile, TemporaryFolder, temporary_folder};
use crate::error::{Error, Result, setting};
use crate::model::FileBytes;

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
    let map = fs::Mapping::new(path).map_err(|error| Error::io(path, "read", error))?;
    Ok(Mapped { map, path: path.into() })
}

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    map: fs::Mapping,
    path: PathBuf,
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Mapped {
    /// The file, whose parts are in memory or read when they are needed.
    pub fn file(&self) -> FileBytes<'_> {
        self.map.file()
    }

    /// Fails if the file was written to since it was mapped. A new file renamed into its place is no problem:
    /// the old one stays mapped.
    ///
    /// # Errors
    /// [`Error::Input`] names the file.
    pub fn check_unchanged(&self) -> Result<()> {
        if !self.map.has_changed() {
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

fn is_file(path: &Path, place: &str) -> Result<()> {
    let fix = "check the path; relative paths start at the current folder";
    let wrong = |found| Err(Error::input(place, format!("a file at {}", path.display()), found, fix));
    match fs::try_exists(path).map_err(|error| Error::io(path, "read", error))? {
        false => wrong("nothing"),
        true if fs::is_dir(path) => wrong("a folder"),
        true => Ok(()),
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
    match () {
        () if fs::is_dir(path) => Err(Error::input(
            place,
            "a file's name",
            format!("the folder {}", path.display()),
            "name a file in it",
        )),
        () if fs::is_file(path) && !overwrite => {
            let found = format!("{}, which exists", path.display());
            Err(Error::input(
                place,
                "a file that does not exist yet",
                found,
                format!("choose another name, or set {}", setting("overwrite")),
            ))
        }
        () if !fs::exists(path) && !fs::is_dir(parent(path)) => {
            let found = format!("no folder {}", parent(path).display());
            let fix = "make the folder, or choose another";
            Err(Error::input(place, "a file in a folder that exists", found, fix))
        }
        () => Ok(()),
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
    Temporary(BufWriter<TemporaryFile>),
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
        let inner = if fs::exists(&target) && !fs::is_file(&target) {
            fs::open_to_write(&target).map(|file| Inner::Direct(BufWriter::new(file)))
        } else {
            TemporaryFile::new(parent(&target)).map(|file| Inner::Temporary(BufWriter::new(file)))
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
                let file = file.into_inner().map_err(io::IntoInnerError::into_error);
                file.and_then(|file| file.persist(&self.target))
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
    temporary: TemporaryFolder,
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
        if fs::is_dir(&self.target) {
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
    match fs::names(path) {
        Err(_) if fs::is_file(path) => {
            let found = format!("the file {}", path.display());
            Err(Error::input(place, "a folder's name", found, "choose another name"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|error| Error::io(path, "list", error)),
    }
}

/// The folder that `path` is in: `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The nearest existing ancestor of `path`: it is on the disk that `path` will be on, so a rename works.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().skip(1).find(|above| fs::is_dir(above)).unwrap_or(Path::new(".")).into()
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
