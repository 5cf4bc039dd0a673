//! A run's folder: one run writes to it at a time, and what is not finished can be gone on with.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{PART, checkpoint, entries, nearest_existing, parent, refuse_filled, temporary_folder};
use crate::error::{Error, Result};

/// What the names of TensorBoard's event files begin with.
pub const EVENTS: &str = "events.out.tfevents.";

/// What a run writes into its folder, and therefore all that `--overwrite` may remove.
const RUN_ENTRIES: &[&str] = &[
    "config.toml",
    "metrics.jsonl",
    "samples.jsonl",
    "completions.jsonl",
    "summary.json",
    "judge.json",
    "judge_args.json",
    "demo.json",
    "adapter",
    "model",
    TRAIN_COPY,
    LOCK,
];

/// Held by the run that writes to the folder; the system lets go of it when a process ends, however it ends.
const LOCK: &str = ".lock";

/// The name in a run's folder of the demo's training examples: with them its config.toml repeats the run.
pub const TRAIN_COPY: &str = "train.jsonl.gz";

/// A run's folder, there from the start so that its metrics can be watched. Dropped before
/// [`RunFolder::keep`] it goes again, and an older run that it replaces comes back.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The older run, moved aside.
    older: RefCell<Option<(TempDir, PathBuf)>>,
    /// The lowest folder above that was there before.
    above: PathBuf,
    kept: Cell<bool>,
    lock: Option<Lock>,
}

/// A folder's lock. The file goes while it is still held, so that nobody's own is removed.
#[derive(Debug)]
struct Lock {
    place: PathBuf,
    _held: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
    }
}

fn is_of_a_run(name: &str) -> bool {
    let begins = |prefix| name.starts_with(prefix);
    let own = [EVENTS, checkpoint::PREFIX, checkpoint::DRAWN, PART];
    RUN_ENTRIES.contains(&name) || own.into_iter().any(begins)
}

impl RunFolder {
    /// Whether [`RunFolder::create`] would agree, without making anything: for the checks before the work.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is taken.
    pub fn check(path: &Path, flag: &str, overwrite: bool) -> Result<()> {
        if !overwrite {
            let unfinished = path.join("config.toml").exists() && !path.join("summary.json").exists();
            let fix = match unfinished {
                true => format!("go on with it (align --resume {}), or add --overwrite", path.display()),
                false => "choose another folder, or add --overwrite".into(),
            };
            return refuse_filled(path, flag, &fix);
        }
        for name in entries(path, flag)? {
            if !is_of_a_run(&name) {
                let found = format!("{} with {name:?} in it", path.display());
                let fix = "choose another folder: --overwrite replaces only what a run has written";
                return Err(Error::input(flag, "a new folder, or that of an earlier run", found, fix));
            }
        }
        Ok(())
    }

    /// Makes the folder. A filled one is refused, unless `overwrite` and it holds nothing but an earlier run.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is taken, [`Error::Io`] where nothing can be written.
    pub fn create(path: &Path, flag: &str, overwrite: bool) -> Result<Self> {
        Self::check(path, flag, overwrite)?;
        let failed = |error| Error::io(path, "create", error);
        let mut older = None;
        if path.is_dir() {
            // Not while somebody is writing to it. Open files would keep a folder where it is on Windows.
            drop(lock(path, flag)?);
            let aside = temporary_folder(parent(path)).map_err(failed)?;
            let place = aside.path().join("older");
            fs::rename(path, &place).map_err(failed)?;
            older = Some((aside, place));
        }
        let mut folder = Self {
            path: path.into(),
            older: older.into(),
            above: nearest_existing(path),
            kept: false.into(),
            lock: None,
        };
        fs::create_dir_all(path).map_err(failed)?;
        folder.lock = Some(lock(path, flag)?);
        Ok(folder)
    }

    /// The folder of a run that was not finished. What a write that was cut off left in it goes.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder that holds no run or a finished one, and while another process writes to
    /// it.
    pub fn resume(path: &Path, flag: &str) -> Result<Self> {
        let wrong = |found: &str, fix: &str| {
            Error::input(
                flag,
                "the folder of a run that was not finished",
                format!("{found} at {}", path.display()),
                fix,
            )
        };
        if !path.join("config.toml").is_file() {
            let found = if path.is_dir() { "a folder without config.toml" } else { "no folder" };
            return Err(wrong(found, "give what --output-dir was in the run"));
        }
        if path.join("summary.json").exists() {
            // It may have been ended while it tidied up.
            checkpoint::remove_all(path)?;
            let from = match path.join("adapter").is_dir() {
                true => format!("--adapter {}", path.join("adapter").display()),
                false => format!("--model {}", path.join("model").display()),
            };
            let fix = format!(
                "to train its result further, begin a new one: aweigh align --config {} {from} --max-steps N \
                 --output-dir NEW",
                path.join("config.toml").display()
            );
            return Err(wrong("a finished run", &fix));
        }
        let lock = lock(path, flag)?;
        for folder in [path.into(), path.join("adapter"), path.join("model")] {
            for name in entries(&folder, flag)?.iter().filter(|name| name.starts_with(PART)) {
                let left = folder.join(name);
                let removed = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
                removed.map_err(|error| Error::io(&left, "remove", error))?;
            }
        }
        Ok(Self {
            path: path.into(),
            older: None.into(),
            above: path.into(),
            kept: true.into(),
            lock: Some(lock),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run has something to keep: the folder stays, the older run goes. Call it when the first result is
    /// written.
    pub fn keep(&self) {
        self.kept.set(true);
        self.older.replace(None);
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        self.lock = None;
        if self.kept.get() {
            return;
        }
        // Nothing more can be done about a failure here than to leave what is there.
        let _ = fs::remove_dir_all(&self.path);
        for made in self.path.ancestors().skip(1).take_while(|made| **made != self.above) {
            // Not where somebody else has put something by now.
            let _ = fs::remove_dir(made);
        }
        if let Some((aside, place)) = self.older.take()
            && fs::rename(&place, &self.path).is_err()
        {
            log::error!("the earlier run is in {}", place.display());
            let _ = aside.keep();
        }
    }
}

/// Takes the folder's lock.
fn lock(path: &Path, flag: &str) -> Result<Lock> {
    let place = path.join(LOCK);
    let held = File::create(&place).map_err(|error| Error::io(&place, "create", error))?;
    match held.try_lock() {
        Ok(()) => Ok(Lock { place, _held: held }),
        Err(TryLockError::WouldBlock) => {
            let found = format!("{}, which another run is writing to", path.display());
            Err(Error::input(
                flag,
                "a folder of this run's own",
                found,
                "wait for that run, or choose another folder",
            ))
        }
        // Some network drives have no locks: then nothing watches over it, which is no reason to refuse the
        // work.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            log::warn!("{}: {error}", place.display());
            Ok(Lock { place, _held: held })
        }
        Err(TryLockError::Error(error)) => Err(Error::io(&place, "lock", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::names;
    use super::*;

    #[test]
    fn a_failed_run_leaves_what_was_there() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("run");
        drop(RunFolder::create(&path, "--output-dir", false).unwrap());
        drop(RunFolder::create(&room.path().join("deep/deeper/run"), "--output-dir", false).unwrap());
        assert!(names(room.path()).is_empty());
        let run = RunFolder::create(&path, "--output-dir", false).unwrap();
        fs::write(run.path().join("config.toml"), "first").unwrap();
        run.keep();
        drop(run);
        assert!(
            RunFolder::create(&path, "--output-dir", false).unwrap_err().to_string().contains("--overwrite")
        );
        let run = RunFolder::create(&path, "--output-dir", true).unwrap();
        fs::write(run.path().join("config.toml"), "second").unwrap();
        drop(run);
        assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), "first");
        assert_eq!(names(&path), ["config.toml"]);
        let run = RunFolder::create(&path, "--output-dir", true).unwrap();
        run.keep();
        drop(run);
        assert!(names(&path).is_empty());
        assert_eq!(names(room.path()), ["run"]);
        fs::write(path.join("thesis.tex"), "").unwrap();
        let text = RunFolder::create(&path, "--output-dir", true).unwrap_err().to_string();
        assert!(text.contains("thesis.tex"), "{text}");
    }

    #[test]
    fn one_run_at_a_time_and_what_is_left_is_swept() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("run");
        let refused = |result: Result<RunFolder>, part: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        };
        refused(RunFolder::resume(&path, "--resume"), "found no folder at");
        let run = RunFolder::create(&path, "--output-dir", false).unwrap();
        refused(RunFolder::resume(&path, "--resume"), "found a folder without config.toml");
        fs::write(path.join("config.toml"), "").unwrap();
        fs::create_dir(path.join(format!("{PART}x.part"))).unwrap();
        refused(RunFolder::resume(&path, "--resume"), "which another run is writing to");
        refused(RunFolder::create(&path, "--output-dir", true), "which another run is writing to");
        run.keep();
        drop(run);
        refused(RunFolder::create(&path, "--output-dir", false), "align --resume");
        let run = RunFolder::resume(&path, "--resume").unwrap();
        assert_eq!(names(&path), [LOCK, "config.toml"]);
        drop(run);
        assert_eq!(names(&path), ["config.toml"]);
        fs::write(path.join("summary.json"), "{}").unwrap();
        refused(RunFolder::resume(&path, "--resume"), "found a finished run");
    }
}
