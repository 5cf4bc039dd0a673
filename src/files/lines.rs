//! A JSONL file that is written line by line, and loses no lines while its disk is full.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use serde_json::Value;

use super::disk::{self as fs, File};
use super::write_whole;
use crate::error::{Error, Result};

/// A growing JSONL file. Lines that could not be written are kept and written with the next one.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes that were written to the file.
    length: u64,
    /// Bytes that are not written yet.
    waiting: Vec<u8>,
}

impl Lines {
    /// Creates an empty file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created.
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        Ok(Self { path, file, length: 0, waiting: Vec::new() })
    }

    /// Continues the file at `path`: keeps the lines for which `keep` returns true, and removes incomplete or
    /// invalid ones. A missing file starts empty.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or written.
    pub fn resume(path: PathBuf, keep: impl Fn(&Value) -> bool) -> Result<Self> {
        let old = match fs::read(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(&path, "read", error)),
        };
        let stays = |line: &&[u8]| {
            line.ends_with(b"\n") && serde_json::from_slice(line).is_ok_and(|line| keep(&line))
        };
        let kept: Vec<&[u8]> = old.split_inclusive(|byte| *byte == b'\n').filter(stays).collect();
        Self::behind(path, &kept.concat())
    }

    /// Replaces the file's content with `kept`, and continues after it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn behind(path: PathBuf, kept: &[u8]) -> Result<Self> {
        write_whole(&path, kept)?;
        let failed = |error| Error::io(&path, "write", error);
        let mut file = fs::open_to_write(&path).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, length: kept.len() as u64, path, waiting: Vec::new() })
    }

    /// Appends a line, after those that are still waiting.
    ///
    /// # Errors
    /// [`Error::Io`]; the line then waits for the next call.
    pub fn push(&mut self, line: &impl serde::Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.waiting, line)
            .map_err(|e| Error::io(&self.path, "write", e.into()))?;
        self.waiting.push(b'\n');
        self.append()
    }

    /// Appends bytes as they are, after those that are still waiting.
    ///
    /// # Errors
    /// As [`Lines::push`].
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting.extend(bytes);
        self.append()
    }

    fn append(&mut self) -> Result<()> {
        let written = self.file.write_all(&self.waiting);
        if let Err(error) = written {
            // Remove what was written of it, so that the next attempt writes whole lines.
            let _ =
                self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(Error::io(&self.path, "write", error));
        }
        self.length += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_goes_on_behind_the_lines_that_stay() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("metrics.jsonl");
        let mut lines = Lines::create(path.clone()).unwrap();
        (1..5).for_each(|step| lines.push(&json!({"step": step})).unwrap());
        drop(lines);
        // The process was killed in the middle of a line.
        let torn = fs::read_to_string(&path).unwrap() + "{\"step\": 2";
        fs::write(&path, torn).unwrap();
        let mut lines = Lines::resume(path.clone(), |line| line["step"].as_u64() <= Some(2)).unwrap();
        lines.push(&json!({"step": 9})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n{\"step\":9}\n");
        let mut fresh = Lines::resume(room.path().join("new.jsonl"), |_| true).unwrap();
        fresh.push(&1).unwrap();
        assert_eq!(fs::read_to_string(&fresh.path).unwrap(), "1\n");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_full_disk_did_not_take_waits() {
        let room = tempfile::tempdir().unwrap();
        let mut lines = Lines::create(room.path().join("a.jsonl")).unwrap();
        lines.push(&1).unwrap();
        // Every write to it fails as on a full disk.
        let good = std::mem::replace(&mut lines.file, File::options().write(true).open("/dev/full").unwrap());
        assert!(lines.push(&2).unwrap_err().to_string().contains("cannot write"));
        assert!(lines.push(&3).is_err());
        lines.file = good;
        lines.push(&4).unwrap();
        assert_eq!(fs::read_to_string(&lines.path).unwrap(), "1\n2\n3\n4\n");
    }
}
