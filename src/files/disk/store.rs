//! Files and folders by name, in numbered slots: what a browser's tab keeps.
//!
//! A tab can read and write a file at once only if it was opened before, and opening one takes a turn of its
//! event loop. So a number of files without names ([`Slots`]) is open from the start, as in SQLite's
//! opfs-sahpool. The first two slots hold the index in turn: the names of all files, with a number that rises
//! and a checksum. A change of names writes the whole index into the slot of the older one. So each change,
//! also the new name of a folder with many files, is there completely or not at all. These two slots never
//! shrink, so that files can be removed from a disk that is full.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use super::PART;
use super::index::{INDEX, Index};
use super::slots::{Slots, in_memory, part};

/// A file that is open: its slot, and which of the slot's files it is, so that a file that was removed is not
/// taken for the next one there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    slot: usize,
    use_of_slot: u64,
}

/// Files and folders in slots.
pub struct Store {
    slots: Box<dyn Slots>,
    index: Index,
    /// How many files each slot has had.
    uses: BTreeMap<usize, u64>,
    /// Names whose lock is taken.
    locked: BTreeSet<String>,
}

fn missing(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no file or folder {name:?}"))
}

/// The name of `path`, seen from the root; "" is the root.
fn name_of(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn parent_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether `name` is in the folder `folder`, however deep.
fn is_within(name: &str, folder: &str) -> bool {
    folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl Store {
    /// The files in `slots`, which hold an earlier store's or are empty. What was being written when the
    /// earlier store ended is removed.
    ///
    /// # Errors
    /// Fewer than three slots; an index that is damaged, or of a later version of this program; those of the
    /// browser.
    pub fn open(mut slots: Box<dyn Slots>) -> io::Result<Self> {
        let mut index = Index::read(&*slots)?;
        let count = slots.count();
        let is_part = |name: &str| name.split('/').any(|part| part.starts_with(PART));
        index.files.retain(|name, slot| *slot < count && !is_part(name));
        index.folders.retain(|name| !is_part(name));
        let taken: BTreeSet<usize> = index.files.values().copied().collect();
        for slot in (INDEX..count).filter(|slot| !taken.contains(slot)) {
            if slots.size(slot)? > 0 {
                slots.resize(slot, 0)?;
            }
        }
        Ok(Self { slots, index, uses: BTreeMap::new(), locked: BTreeSet::new() })
    }

    /// Number of slots without a file.
    pub fn spare(&self) -> usize {
        self.slots.count() - INDEX - self.index.files.len()
    }

    fn bytes(&self, slot: usize) -> io::Result<Vec<u8>> {
        part(&*self.slots, slot, 0, in_memory(self.slots.size(slot)?)?)
    }

    /// Changes the index, on the disk too. If that fails, nothing is changed.
    fn change(&mut self, change: impl FnOnce(&mut Index)) -> io::Result<()> {
        let mut index = self.index.clone();
        change(&mut index);
        index.number += 1;
        index.write(&mut *self.slots)?;
        self.index = index;
        Ok(())
    }

    fn slot(&self, name: &str) -> io::Result<usize> {
        self.index.files.get(name).copied().ok_or_else(|| missing(name))
    }

    fn opened(&self, slot: usize) -> Opened {
        Opened { slot, use_of_slot: self.uses.get(&slot).copied().unwrap_or(0) }
    }

    fn slot_of(&self, file: Opened) -> io::Result<usize> {
        match self.opened(file.slot) == file {
            true => Ok(file.slot),
            false => Err(io::Error::new(ErrorKind::NotFound, "a file was removed while it was in use")),
        }
    }

    /// Whether there is a file at `path`.
    pub fn is_file(&self, path: &Path) -> bool {
        self.index.files.contains_key(&name_of(path))
    }

    /// Whether there is a folder at `path`.
    pub fn is_dir(&self, path: &Path) -> bool {
        let name = name_of(path);
        name.is_empty() || self.index.folders.contains(&name)
    }

    /// The names in the folder `path`, sorted.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let name = name_of(path);
        if !self.is_dir(path) {
            return Err(missing(&name));
        }
        let all = self.index.files.keys().chain(&self.index.folders);
        let own = all.filter(|other| !other.is_empty() && parent_of(other) == name);
        let mut names: Vec<String> =
            own.map(|other| other[name.len()..].trim_start_matches('/').to_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Creates an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// A folder that is not there, or is in the way; no slot that is free; those of the browser.
    pub fn create(&mut self, path: &Path) -> io::Result<Opened> {
        let name = name_of(path);
        if let Ok(slot) = self.slot(&name) {
            self.slots.resize(slot, 0)?;
            return Ok(self.opened(slot));
        }
        if self.is_dir(path) {
            return Err(io::Error::new(ErrorKind::IsADirectory, format!("{name:?} is a folder")));
        }
        if !self.is_dir(Path::new(parent_of(&name))) {
            return Err(missing(parent_of(&name)));
        }
        let slot = self.free()?;
        self.change(|index| {
            index.files.insert(name, slot);
        })?;
        Ok(self.opened(slot))
    }

    /// An empty slot that no file has.
    fn free(&mut self) -> io::Result<usize> {
        let taken: BTreeSet<usize> = self.index.files.values().copied().collect();
        let free = (INDEX..self.slots.count()).find(|slot| !taken.contains(slot));
        let slot = free.ok_or_else(|| io::Error::other("too many files at the same time"))?;
        *self.uses.entry(slot).or_default() += 1;
        self.slots.resize(slot, 0)?;
        Ok(slot)
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// A file that is not there.
    pub fn open_file(&self, path: &Path) -> io::Result<Opened> {
        Ok(self.opened(self.slot(&name_of(path))?))
    }

    /// Reads from byte `at`; returns how many bytes were read.
    ///
    /// # Errors
    /// A file that was removed; those of the browser.
    pub fn read_at(&self, file: Opened, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.slots.read(self.slot_of(file)?, at, bytes)
    }

    /// Writes from byte `at` on.
    ///
    /// # Errors
    /// As [`Store::read_at`]; a full disk.
    pub fn write_at(&mut self, file: Opened, at: u64, bytes: &[u8]) -> io::Result<()> {
        let slot = self.slot_of(file)?;
        self.slots.write(slot, at, bytes)
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// As [`Store::read_at`].
    pub fn size(&self, file: Opened) -> io::Result<u64> {
        self.slots.size(self.slot_of(file)?)
    }

    /// Sets the size in bytes.
    ///
    /// # Errors
    /// As [`Store::read_at`].
    pub fn resize(&mut self, file: Opened, size: u64) -> io::Result<()> {
        let slot = self.slot_of(file)?;
        self.slots.resize(slot, size)
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// As [`Store::read_at`].
    pub fn flush(&mut self, file: Opened) -> io::Result<()> {
        let slot = self.slot_of(file)?;
        self.slots.flush(slot)
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// A file that is not there; too little memory; those of the browser.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.bytes(self.slot(&name_of(path))?)
    }

    /// `len` bytes of a file from byte `at` on.
    ///
    /// # Errors
    /// As [`Store::read_at`]; too little memory; a file that ends before.
    pub fn read_part(&self, file: Opened, at: u64, len: usize) -> io::Result<Vec<u8>> {
        part(&*self.slots, self.slot_of(file)?, at, len)
    }

    /// Creates a folder, and those above it.
    ///
    /// # Errors
    /// A file that is in the way; those of the browser.
    pub fn create_folders(&mut self, path: &Path) -> io::Result<()> {
        let name = name_of(path);
        let above = name.match_indices('/').map(|(at, _)| name[..at].to_owned());
        let all: Vec<String> = above.chain([name.clone()]).filter(|name| !name.is_empty()).collect();
        if let Some(file) = all.iter().find(|name| self.index.files.contains_key(*name)) {
            return Err(io::Error::new(ErrorKind::NotADirectory, format!("{file:?} is a file")));
        }
        if all.iter().all(|name| self.index.folders.contains(name)) {
            return Ok(());
        }
        self.change(|index| index.folders.extend(all))
    }

    /// Removes the file or folder at `path`, with all that is in it.
    ///
    /// # Errors
    /// Nothing there; those of the browser.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        let name = name_of(path);
        if name.is_empty() || !self.is_file(path) && !self.is_dir(path) {
            return Err(missing(&name));
        }
        let goes = |other: &str| other == name || is_within(other, &name);
        let slots: Vec<usize> =
            self.index.files.iter().filter(|(n, _)| goes(n)).map(|(_, slot)| *slot).collect();
        self.change(|index| {
            index.files.retain(|name, _| !goes(name));
            index.folders.retain(|name| !goes(name));
        })?;
        self.empty(slots);
        Ok(())
    }

    /// Empties slots that no file has any more.
    fn empty(&mut self, slots: Vec<usize>) {
        for slot in slots {
            *self.uses.entry(slot).or_default() += 1;
            // Before the slot gets another file it is emptied again.
            let _ = self.slots.resize(slot, 0);
        }
    }

    /// Renames a file, which replaces one with the new name, or a folder.
    ///
    /// # Errors
    /// Nothing there, a folder in the way; those of the browser.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (old, new) = (name_of(from), name_of(to));
        if !self.is_dir(Path::new(parent_of(&new))) {
            return Err(missing(parent_of(&new)));
        }
        if self.is_dir(to) || is_within(&new, &old) && !old.is_empty() {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{new:?} is a folder, or in it")));
        }
        if let Ok(slot) = self.slot(&old) {
            let replaced = self.index.files.get(&new).copied().filter(|&other| other != slot);
            self.change(|index| {
                index.files.remove(&old);
                index.files.insert(new, slot);
            })?;
            self.empty(replaced.into_iter().collect());
            return Ok(());
        }
        if !self.is_dir(from) || old.is_empty() || self.is_file(to) {
            return Err(missing(&old));
        }
        let moved = |name: String| match name == old || is_within(&name, &old) {
            true => format!("{new}{}", &name[old.len()..]),
            false => name,
        };
        self.change(|index| {
            let (files, folders) = (std::mem::take(&mut index.files), std::mem::take(&mut index.folders));
            index.files = files.into_iter().map(|(name, slot)| (moved(name), slot)).collect();
            index.folders = folders.into_iter().map(moved).collect();
        })
    }

    /// Takes the lock of `path`. Returns whether it was free.
    pub fn lock(&mut self, path: &Path) -> bool {
        self.locked.insert(name_of(path))
    }

    /// Gives the lock of `path` back.
    pub fn unlock(&mut self, path: &Path) {
        self.locked.remove(&name_of(path));
    }
}

#[cfg(test)]
mod tests;
