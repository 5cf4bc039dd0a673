//! The folder in which the app keeps what belongs to the user: for each model a folder with conversations,
//! flags, runs and exported files.
//!
//! | file | content |
//! |---|---|
//! | `last.json` | the model that was open last |
//! | `MODEL/project.json` | the model's name, as the user gave it, and the number of the last run |
//! | `MODEL/flagged.jsonl` | flagged answers, in TRL's unpaired form |
//! | `MODEL/rule.txt` | the user's own rule for unwanted answers, if there is one |
//! | `MODEL/chats/ID.json` | a conversation |
//! | `MODEL/runs/N` | the folder of a run, as `aweigh align` writes it |
//! | `MODEL/data/N.jsonl`, `N-held-out.jsonl` | the flags that run N trained on, and those it held out |
//! | `MODEL/comparisons/N.json` | what `aweigh eval --output` would write for run N |
//! | `MODEL/votes.jsonl` | the user's choices between answers |
//! | `MODEL/exports/N` | the files that were made from run N |

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::flags::Flags;
use aweigh::error::{Error, Result};
use aweigh::files::disk::{self as fs, Lock};
use aweigh::files::{entries, write_whole};

/// The app's folder, which only one app uses at a time.
pub struct Workspace {
    folder: PathBuf,
    _lock: Option<Lock>,
}

/// What belongs to one model.
pub struct Project {
    /// The model, as the user named it.
    pub model: String,
    /// The project's folder.
    pub folder: PathBuf,
    /// The flagged answers.
    flags: Mutex<Flags>,
    /// Held while a conversation is compared and written.
    pub chats: Mutex<()>,
}

const PROJECT: &str = "project.json";
const LAST: &str = "last.json";

/// Creates `folder` and those above it.
///
/// # Errors
/// [`Error::Io`].
pub fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))
}

/// The JSON in a file; `None` if there is none that can be read.
fn json_of(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

impl Workspace {
    /// Opens the folder at `path`, which is created if it is missing.
    ///
    /// # Errors
    /// [`Error::Input`] if another app uses it, [`Error::Io`] if it cannot be written to.
    pub fn open(path: &Path) -> Result<Self> {
        create(path)?;
        let place = path.join(".lock");
        let lock = Lock::take_lasting(place.clone());
        if matches!(lock, Ok(None)) {
            let found = format!("{}, which another `aweigh app` uses", path.display());
            let fix = "use that one's page, or give another folder";
            return Err(Error::input("--dir", "a folder that no other app uses", found, fix));
        }
        // Some network folders have no locks.
        let lock = lock.unwrap_or_else(|error| {
            log::warn!("{}: cannot be locked: {error}", place.display());
            None
        });
        // A run's settings name its files: they must not depend on where the app is started.
        let folder = fs::canonicalize(path).map_err(|error| Error::io(path, "read", error))?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model that was open last.
    pub fn last_model(&self) -> Option<String> {
        Some(json_of(&self.folder.join(LAST))?["model"].as_str()?.to_owned())
    }

    /// The models that have a project, and the projects' folders.
    pub fn models(&self) -> Vec<(String, PathBuf)> {
        let names = entries(&self.folder, "--dir").unwrap_or_default();
        let of = |name: String| {
            let folder = self.folder.join(name);
            Some((json_of(&folder.join(PROJECT))?["model"].as_str()?.to_owned(), folder))
        };
        names.into_iter().filter_map(of).collect()
    }

    /// The project of `model`, which is the last one from now on. It is created if there is none.
    ///
    /// # Errors
    /// [`Error::Input`] for flags that cannot be read, [`Error::Io`].
    pub fn project(&self, model: &str) -> Result<Project> {
        let known = self.models().into_iter().find(|(name, _)| name == model);
        let folder = match known {
            Some((_, folder)) => folder,
            None => {
                let folder = self.free(model);
                create(&folder)?;
                write_whole(&folder.join(PROJECT), json!({ "model": model }).to_string().as_bytes())?;
                folder
            }
        };
        let flags = Mutex::new(Flags::open(folder.join("flagged.jsonl"))?);
        write_whole(&self.folder.join(LAST), json!({ "model": model }).to_string().as_bytes())?;
        Ok(Project { model: model.to_owned(), folder, flags, chats: Mutex::new(()) })
    }

    /// A folder that does not exist yet, named after `model`.
    fn free(&self, model: &str) -> PathBuf {
        let parts: Vec<&str> = model.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
        let last = parts[parts.len().saturating_sub(2)..].join("-");
        let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = last.chars().map(fits).collect();
        let name = name.trim_matches(['.', '-']).to_owned();
        // A name without a letter or digit, or one that Windows keeps for itself, is no folder's.
        let kept = ["con", "prn", "aux", "nul"].iter().any(|own| name.eq_ignore_ascii_case(own));
        let name = if name.is_empty() || kept { format!("model-{name}") } else { name };
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let mut paths = std::iter::once(name.clone()).chain(numbered).map(|name| self.folder.join(name));
        paths.find(|path| !fs::exists(path)).expect("some number is free")
    }
}

impl Project {
    /// The flagged answers.
    pub fn flags(&self) -> MutexGuard<'_, Flags> {
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of run `id`.
    pub fn run(&self, id: u32) -> PathBuf {
        self.folder.join("runs").join(id.to_string())
    }

    /// The adapter of run `id`, which exists if the run has ended.
    pub fn adapter(&self, id: u32) -> PathBuf {
        self.run(id).join("adapter")
    }

    /// The flags that run `id` trained on, and those that it held out.
    pub fn data(&self, id: u32) -> [PathBuf; 2] {
        let folder = self.folder.join("data");
        [folder.join(format!("{id}.jsonl")), folder.join(format!("{id}-held-out.jsonl"))]
    }

    /// The comparison of run `id` with the model.
    pub fn comparison(&self, id: u32) -> PathBuf {
        self.folder.join("comparisons").join(format!("{id}.json"))
    }

    /// The folder of what was made from run `id`.
    pub fn exports(&self, id: u32) -> PathBuf {
        self.folder.join("exports").join(id.to_string())
    }

    /// The numbers of the runs, from the first.
    pub fn runs(&self) -> Vec<u32> {
        let names = fs::names(&self.folder.join("runs")).unwrap_or_default();
        let mut all: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        all.sort_unstable();
        all
    }

    /// The number of the next run: no run had it, not one that was removed either.
    pub fn next_run(&self) -> u32 {
        let project = json_of(&self.folder.join(PROJECT));
        let known = project.and_then(|project| project["last_run"].as_u64()).unwrap_or(0) as u32;
        known.max(self.runs().last().copied().unwrap_or(0)) + 1
    }

    /// Keeps that run `id` has begun.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_run(&self, id: u32) -> Result<()> {
        let project = json!({ "model": self.model, "last_run": id });
        write_whole(&self.folder.join(PROJECT), project.to_string().as_bytes())
    }

    /// The name of the project's folder.
    pub fn id(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Reads the flags again, which may have been changed by hand.
    ///
    /// # Errors
    /// [`Error::Input`] with the line that cannot be read.
    pub fn reload(&self) -> Result<()> {
        let read = Flags::open(self.folder.join("flagged.jsonl"))?;
        *self.flags() = read;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_a_folder_of_its_own_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let space = Workspace::open(folder.path()).unwrap();
        let names = ["tiny", "owner/tiny", "/home/me/tiny", "../..", "owner-tiny", "ünï/cödé", "con", "AUX"];
        let folders: Vec<PathBuf> = names.iter().map(|name| space.project(name).unwrap().folder).collect();
        for (i, own) in folders.iter().enumerate() {
            assert_eq!(own.parent(), Some(space.folder()), "{}", own.display());
            assert!(!folders[..i].contains(own));
        }
        assert_eq!(space.project("owner/tiny").unwrap().folder, folders[1]);
        assert_eq!(space.last_model().as_deref(), Some("owner/tiny"));
        assert_eq!(space.models().len(), names.len());
        assert!(Workspace::open(folder.path()).is_err(), "another app uses it");
        drop(space);
        // A process that another test starts just now has the lock too, until its program begins.
        let again = || Workspace::open(folder.path()).is_ok();
        let soon = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            again()
        });
        assert!(soon, "the folder is free again");
    }

    #[test]
    fn runs_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let project = Workspace::open(folder.path()).unwrap().project("tiny").unwrap();
        assert_eq!((project.runs(), project.next_run()), (vec![], 1));
        for id in [2, 10] {
            create(&project.run(id)).unwrap();
        }
        create(&project.folder.join("runs/other")).unwrap();
        assert_eq!((project.runs(), project.next_run()), (vec![2, 10], 11));
        project.keep_run(11).unwrap();
        fs::remove_dir_all(project.run(10)).unwrap();
        assert_eq!(project.next_run(), 12);
    }
}
