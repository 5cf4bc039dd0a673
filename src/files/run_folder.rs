//! A run's folder: only one run at a time writes to it, and an unfinished run can be resumed.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use super::disk::{self as fs, Lock, PART, TemporaryFolder, temporary_folder};
use super::{checkpoint, entries, nearest_existing, parent, refuse_filled};
use crate::error::{Error, Result, setting};

/// Prefix of the names of TensorBoard's event files.
pub const EVENTS: &str = "events.out.tfevents.";

/// Names of the files and folders that a run writes, besides those with a prefix (see [`is_of_a_run`]).
/// `--overwrite` removes nothing else.
const RUN_ENTRIES: &[&str] = &[
    "config.toml",
    "metrics.jsonl",
    "samples.jsonl",
    "anchors.jsonl",
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

/// Lock file of the run that writes to the folder. The operating system releases the lock when the process
/// ends, also after a crash.
const LOCK: &str = ".lock";

/// Name of the demo's training examples in its run's folder: with them, config.toml repeats the run.
pub const TRAIN_COPY: &str = "train.jsonl.gz";

/// A run's folder, created at the start so that the metrics can be watched. If it is dropped before
/// [`RunFolder::keep`], it is removed, and an older run that it replaced is moved back.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The older run: the temporary folder that it was moved to, and its path there.
    older: RefCell<Option<(TemporaryFolder, PathBuf)>>,
    /// The nearest ancestor folder that existed before.
    above: PathBuf,
    kept: Cell<bool>,
    lock: Option<Lock>,
}

fn is_of_a_run(name: &str) -> bool {
    let begins = |prefix| name.starts_with(prefix);
    let own = [EVENTS, checkpoint::PREFIX, checkpoint::DRAWN, PART];
    RUN_ENTRIES.contains(&name) || own.into_iter().any(begins)
}

impl RunFolder {
    /// Checks that [`RunFolder::create`] would accept `path`, without creating anything.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is already in use.
    pub fn check(path: &Path, place: &str, overwrite: bool) -> Result<()> {
        if !overwrite {
            let overwrite = setting("overwrite");
            let unfinished = fs::exists(&path.join("config.toml")) && !fs::exists(&path.join("summary.json"));
            let fix = match unfinished {
                true => format!("resume it (align --resume {}), or set {overwrite}", path.display()),
                false => format!("choose another folder, or set {overwrite}"),
            };
            return refuse_filled(path, place, &fix);
        }
        for name in entries(path, place)? {
            if !is_of_a_run(&name) {
                let found = format!("{} with {name:?} in it", path.display());
                let overwrite = setting("overwrite");
                let fix = format!("choose another folder: {overwrite} replaces only what a run has written");
                return Err(Error::input(place, "a new folder, or an earlier run's folder", found, fix));
            }
        }
        Ok(())
    }

    /// Creates the folder. A folder that is not empty is refused, unless `overwrite` is set and it contains
    /// only an earlier run.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is already in use, [`Error::Io`] if it cannot be written to.
    pub fn create(path: &Path, place: &str, overwrite: bool) -> Result<Self> {
        Self::check(path, place, overwrite)?;
        let failed = |error| Error::io(path, "create", error);
        let mut older = None;
        if fs::is_dir(path) {
            // Fails if another run is writing to it. Unlocked at once, because Windows does not move a folder
            // with open files.
            drop(lock(path, place)?);
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
        folder.lock = Some(lock(path, place)?);
        Ok(folder)
    }

    /// Opens the folder of an unfinished run, and removes the temporary files that interrupted writes left.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without a run or with a finished one, and while another process writes
    /// to it.
    pub fn resume(path: &Path, place: &str) -> Result<Self> {
        let wrong = |found: &str, fix: &str| {
            Error::input(
                place,
                "the folder of an unfinished run",
                format!("{found} at {}", path.display()),
                fix,
            )
        };
        if !fs::is_file(&path.join("config.toml")) {
            let found = if fs::is_dir(path) { "a folder without config.toml" } else { "no folder" };
            return Err(wrong(found, &format!("give the run's {}", setting("output_dir"))));
        }
        if fs::exists(&path.join("summary.json")) {
            // The process may have ended before it removed the checkpoints.
            checkpoint::remove_all(path)?;
            let from = match fs::is_dir(&path.join("adapter")) {
                true => format!("--adapter {}", path.join("adapter").display()),
                false => format!("--model {}", path.join("model").display()),
            };
            let fix = format!(
                "to train its result further, start a new run: aweigh align --config {} {from} --max-steps N \
                 --output-dir NEW",
                path.join("config.toml").display()
            );
            return Err(wrong("a finished run", &fix));
        }
        Self::reopen(path, place)
    }

    /// Opens the folder of a finished run, to add to its results. Removes what an interrupted end left there.
    ///
    /// # Errors
    /// [`Error::Input`] while another process writes to it, [`Error::Io`] if it cannot be written to.
    pub fn reopen_finished(path: &Path, place: &str) -> Result<Self> {
        let folder = Self::reopen(path, place)?;
        checkpoint::remove_all(path)?;
        Ok(folder)
    }

    fn reopen(path: &Path, place: &str) -> Result<Self> {
        let lock = lock(path, place)?;
        for folder in [path.into(), path.join("adapter"), path.join("model")] {
            for name in entries(&folder, place)?.iter().filter(|name| name.starts_with(PART)) {
                let left = folder.join(name);
                let removed =
                    if fs::is_dir(&left) { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
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

    /// Keeps the folder and removes the older run. Call it once the first result is written.
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
        // If this fails the files stay: nothing else can be done here.
        let _ = fs::remove_dir_all(&self.path);
        for made in self.path.ancestors().skip(1).take_while(|made| **made != self.above) {
            // Fails, as it should, if another program has put a file there.
            let _ = fs::remove_dir(made);
        }
        if let Some((aside, place)) = self.older.take()
            && fs::rename(&place, &self.path).is_err()
        {
            log::error!("the earlier run could not be moved back; it is in {}", place.display());
            let _ = aside.keep();
        }
    }
}

/// Takes the folder's lock.
fn lock(path: &Path, place: &str) -> Result<Lock> {
    let file = path.join(LOCK);
    Lock::take(file.clone()).map_err(|error| Error::io(&file, "lock", error))?.ok_or_else(|| {
        let found = format!("{}, which another run is writing to", path.display());
        let fix = "wait for that run, or choose another folder";
        Error::input(place, "a folder that no other run writes to", found, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::names;
    use super::*;

    #[test]
    fn a_failed_run_leaves_what_was_there() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("run");
        drop(RunFolder::create(&path, "output_dir", false).unwrap());
        drop(RunFolder::create(&room.path().join("deep/deeper/run"), "output_dir", false).unwrap());
        assert!(names(room.path()).is_empty());
        let run = RunFolder::create(&path, "output_dir", false).unwrap();
        fs::write(run.path().join("config.toml"), "first").unwrap();
        run.keep();
        drop(run);
        assert!(RunFolder::create(&path, "output_dir", false).unwrap_err().to_string().contains("overwrite"));
        let run = RunFolder::create(&path, "output_dir", true).unwrap();
        fs::write(run.path().join("config.toml"), "second").unwrap();
        drop(run);
        assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), "first");
        assert_eq!(names(&path), ["config.toml"]);
        let run = RunFolder::create(&path, "output_dir", true).unwrap();
        run.keep();
        drop(run);
        assert!(names(&path).is_empty());
        assert_eq!(names(room.path()), ["run"]);
        fs::write(path.join("thesis.tex"), "").unwrap();
        let text = RunFolder::create(&path, "output_dir", true).unwrap_err().to_string();
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
        refused(RunFolder::resume(&path, "folder"), "found no folder at");
        let run = RunFolder::create(&path, "output_dir", false).unwrap();
        refused(RunFolder::resume(&path, "folder"), "found a folder without config.toml");
        fs::write(path.join("config.toml"), "").unwrap();
        fs::create_dir(path.join(format!("{PART}x.part"))).unwrap();
        refused(RunFolder::resume(&path, "folder"), "which another run is writing to");
        refused(RunFolder::create(&path, "output_dir", true), "which another run is writing to");
        run.keep();
        drop(run);
        refused(RunFolder::create(&path, "output_dir", false), "align --resume");
        let run = RunFolder::resume(&path, "folder").unwrap();
        assert_eq!(names(&path), [LOCK, "config.toml"]);
        drop(run);
        assert_eq!(names(&path), ["config.toml"]);
        fs::write(path.join("summary.json"), "{}").unwrap();
        refused(RunFolder::resume(&path, "folder"), "found a finished run");
    }
}
