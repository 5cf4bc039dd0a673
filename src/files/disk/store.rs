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

use serde::{Deserialize, Serialize};

use super::PART;

/// Open files without names. All numbers are below [`Slots::count`].
pub trait Slots {
    /// Number of slots. It may grow.
    fn count(&self) -> usize;
    /// Reads from byte `at`; returns how many bytes were read, 0 at the end.
    ///
    /// # Errors
    /// Those of the browser.
    fn read(&self, slot: usize, at: u64, bytes: &mut [u8]) -> io::Result<usize>;
    /// Writes all bytes from byte `at` on.
    ///
    /// # Errors
    /// Those of the browser, such as a full disk.
    fn write(&mut self, slot: usize, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Size in bytes.
    ///
    /// # Errors
    /// Those of the browser.
    fn size(&self, slot: usize) -> io::Result<u64>;
    /// Sets the size in bytes.
    ///
    /// # Errors
    /// Those of the browser.
    fn resize(&mut self, slot: usize, size: u64) -> io::Result<()>;
    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// Those of the browser.
    fn flush(&mut self, slot: usize) -> io::Result<()>;
}

/// Slots in memory: gone with the tab.
#[derive(Debug)]
pub struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// `count` empty slots.
    pub fn new(count: usize) -> Self {
        Self(vec![Vec::new(); count])
    }
}

impl Slots for Memory {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn read(&self, slot: usize, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let rest = self.0[slot].get(at as usize..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&mut self, slot: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (own, at) = (&mut self.0[slot], at as usize);
        own.resize(own.len().max(at + bytes.len()), 0);
        own[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self, slot: usize) -> io::Result<u64> {
        Ok(self.0[slot].len() as u64)
    }

    fn resize(&mut self, slot: usize, size: u64) -> io::Result<()> {
        self.0[slot].resize(size as usize, 0);
        Ok(())
    }

    fn flush(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// What the index holds. Names are paths with `/`, without one in front.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    /// [`FORMAT`].
    format: u32,
    /// Raised with each change.
    number: u64,
    /// The slot of each file.
    files: BTreeMap<String, usize>,
    /// All folders but the root.
    folders: BTreeSet<String>,
}

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

/// The slots of the index.
const INDEX: usize = 2;
/// Version of the index: raised when an earlier version of this program could not read it.
const FORMAT: u32 = 1;
/// The size of the index's slots is a multiple of this many bytes.
const STEP: usize = 64 << 10;

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

/// What a slot of the index holds.
enum Found {
    Nothing,
    Damaged,
    Index(Index),
}

impl Found {
    fn index(self) -> Option<Index> {
        if let Self::Index(index) = self { Some(index) } else { None }
    }
}

/// The index in `slot`.
fn index_in(slots: &dyn Slots, slot: usize) -> io::Result<Found> {
    let bytes = part(slots, slot, 0, in_memory(slots.size(slot)?)?)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Found::Nothing);
    }
    let word = |at: usize| bytes.get(at..at + 4).map(|word| [word[0], word[1], word[2], word[3]]);
    let text = word(4).and_then(|len| bytes.get(8..)?.get(..u32::from_le_bytes(len) as usize));
    let whole = text.filter(|text| word(0) == Some(crc32fast::hash(text).to_le_bytes()));
    let index = whole.and_then(|text| serde_json::from_slice(text).ok());
    Ok(index.map_or(Found::Damaged, Found::Index))
}

/// A size in bytes of what is to be in memory.
///
/// # Errors
/// A size that memory cannot have.
pub fn in_memory(size: u64) -> io::Result<usize> {
    usize::try_from(size)
        .map_err(|_| io::Error::other(format!("{size} bytes: a tab can use files of up to 4 GiB")))
}

/// `len` bytes of a slot from byte `at` on.
fn part(slots: &dyn Slots, slot: usize, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
    bytes.resize(len, 0);
    let mut done = 0;
    while done < len {
        match slots.read(slot, at + done as u64, &mut bytes[done..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(bytes)
}

impl Store {
    /// The files in `slots`, which hold an earlier store's or are empty. What was being written when the
    /// earlier store ended is removed.
    ///
    /// # Errors
    /// Fewer than three slots; an index that is damaged, or of a later version of this program; those of the
    /// browser.
    pub fn open(mut slots: Box<dyn Slots>) -> io::Result<Self> {
        if slots.count() <= INDEX {
            return Err(io::Error::other("too few slots"));
        }
        let invalid = |text| Err(io::Error::new(ErrorKind::InvalidData, text));
        let found = (0..INDEX).map(|slot| index_in(&*slots, slot)).collect::<io::Result<Vec<_>>>()?;
        let is_empty = found.iter().all(|found| matches!(found, Found::Nothing));
        let newest = found.into_iter().filter_map(Found::index).max_by_key(|index| index.number);
        let mut index = match newest {
            Some(index) if index.format != FORMAT => {
                return invalid("the files were kept by a later version of this page: reload it");
            }
            Some(index) => index,
            None if is_empty => Index { format: FORMAT, ..Index::default() },
            None => return invalid("the list of files is damaged: clear this site's data in the browser"),
        };
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
        let text = serde_json::to_vec(&index)?;
        let head = [crc32fast::hash(&text).to_le_bytes(), (text.len() as u32).to_le_bytes()].concat();
        let bytes = [head, text].concat();
        let slot = (index.number % INDEX as u64) as usize;
        let written = self.write_index(slot, &bytes);
        if written.is_err() {
            // It may be on the disk anyway: what memory has counts. If this fails too, the checksum of what
            // was half written tells.
            let _ = self.slots.write(slot, 0, &[0; 8]);
            return written;
        }
        self.index = index;
        Ok(())
    }

    fn write_index(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        let wide = bytes.len().next_multiple_of(STEP) as u64;
        if self.slots.size(slot)? < wide {
            self.slots.resize(slot, wide)?;
        }
        self.slots.write(slot, 0, bytes)?;
        self.slots.flush(slot)
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
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Slots that outlive a store, and whose writes can fail.
    #[derive(Clone)]
    struct Kept(Rc<RefCell<Memory>>, Rc<RefCell<usize>>);

    impl Kept {
        fn new() -> Self {
            Self(Rc::new(RefCell::new(Memory::new(12))), Rc::new(RefCell::new(usize::MAX)))
        }

        fn store(&self) -> Store {
            Store::open(Box::new(self.clone())).unwrap()
        }
    }

    impl Slots for Kept {
        fn count(&self) -> usize {
            self.0.borrow().count()
        }

        fn read(&self, slot: usize, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
            // As some browsers, at most 5 bytes at a time.
            let count = bytes.len().min(5);
            self.0.borrow().read(slot, at, &mut bytes[..count])
        }

        fn write(&mut self, slot: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
            let mut left = self.1.borrow_mut();
            if *left == 0 {
                // Half of it is written, and then the disk is full.
                self.0.borrow_mut().write(slot, at, &bytes[..bytes.len() / 2])?;
                return Err(ErrorKind::StorageFull.into());
            }
            *left -= 1;
            self.0.borrow_mut().write(slot, at, bytes)
        }

        fn size(&self, slot: usize) -> io::Result<u64> {
            self.0.borrow().size(slot)
        }

        fn resize(&mut self, slot: usize, size: u64) -> io::Result<()> {
            self.0.borrow_mut().resize(slot, size)
        }

        fn flush(&mut self, slot: usize) -> io::Result<()> {
            self.0.borrow_mut().flush(slot)
        }
    }

    fn put(store: &mut Store, path: &str, bytes: &[u8]) -> io::Result<()> {
        let file = store.create(Path::new(path))?;
        store.write_at(file, 0, bytes)
    }

    #[test]
    fn files_are_found_again_by_the_next_store() {
        let slots = Kept::new();
        let mut store = slots.store();
        assert!(put(&mut store, "/a/b/c.txt", b"").is_err(), "no such folder");
        store.create_folders(Path::new("/a/b")).unwrap();
        put(&mut store, "/a/b/c.txt", b"twelve bytes").unwrap();
        put(&mut store, "a/b/../d.txt", b"d").unwrap();
        assert!(store.create_folders(Path::new("a/d.txt/e")).is_err());
        assert!(store.create(Path::new("a")).is_err());
        let mut store = slots.store();
        assert_eq!(store.names(Path::new("/")).unwrap(), ["a"]);
        assert_eq!(store.names(Path::new("a/")).unwrap(), ["b", "d.txt"]);
        assert_eq!(store.read(Path::new("./a/b/c.txt")).unwrap(), b"twelve bytes");
        assert!(store.is_dir(Path::new("a/b")) && !store.is_file(Path::new("a/b")));
        store.rename(Path::new("a/d.txt"), Path::new("a/b/c.txt")).unwrap();
        assert_eq!(store.read(Path::new("a/b/c.txt")).unwrap(), b"d");
        assert_eq!(store.spare(), 12 - INDEX - 1);
        store.rename(Path::new("a/b"), Path::new("e")).unwrap();
        assert_eq!(slots.store().read(Path::new("e/c.txt")).unwrap(), b"d");
        assert!(store.rename(Path::new("e"), Path::new("e/f")).is_err());
        store.remove(Path::new("e")).unwrap();
        assert!(!slots.store().is_file(Path::new("e/c.txt")));
        assert_eq!(slots.store().names(Path::new("")).unwrap(), ["a"]);
    }

    #[test]
    fn an_open_file_that_was_removed_is_not_the_next_one_in_its_slot() {
        let mut store = Kept::new().store();
        let file = store.create(Path::new("a")).unwrap();
        store.write_at(file, 0, b"one").unwrap();
        assert_eq!(store.read_part(file, 1, 2).unwrap(), b"ne");
        assert!(store.read_part(file, 1, 3).is_err(), "it ends before");
        store.rename(Path::new("a"), Path::new("b")).unwrap();
        store.write_at(file, 3, b" two").unwrap();
        store.remove(Path::new("b")).unwrap();
        put(&mut store, "c", b"new").unwrap();
        assert!(store.write_at(file, 0, b"old").is_err());
        assert_eq!(store.read(Path::new("c")).unwrap(), b"new");
        assert!(store.read_part(file, 0, 1).is_err());
        assert!(store.lock(Path::new("c/lock")) && !store.lock(Path::new("/c/lock")));
        store.unlock(Path::new("c/lock"));
        assert!(store.lock(Path::new("c/lock")));
    }

    #[test]
    fn a_change_that_fails_half_way_is_none() {
        let slots = Kept::new();
        let mut store = slots.store();
        store.create_folders(Path::new("run/new")).unwrap();
        for name in ["run/new/a", "run/new/b"] {
            put(&mut store, name, b"x").unwrap();
        }
        *slots.1.borrow_mut() = 0;
        assert!(store.rename(Path::new("run/new"), Path::new("run/checkpoint-1")).is_err());
        assert!(store.is_file(Path::new("run/new/a")));
        // The tab is closed: what the next one finds is what was there before.
        let mut store = slots.store();
        assert_eq!(store.names(Path::new("run")).unwrap(), ["new"]);
        *slots.1.borrow_mut() = usize::MAX;
        store.rename(Path::new("run/new"), Path::new("run/checkpoint-1")).unwrap();
        assert_eq!(slots.store().names(Path::new("run/checkpoint-1")).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_damaged_index_is_told_and_the_one_before_it_counts() {
        let slots = Kept::new();
        let mut store = slots.store();
        put(&mut store, "a", b"x").unwrap();
        put(&mut store, "b", b"y").unwrap();
        let spoil = |slot: usize| slots.0.borrow_mut().write(slot, 20, b"?").unwrap();
        let newest = (store.index.number % 2) as usize;
        spoil(newest);
        assert_eq!(slots.store().names(Path::new("")).unwrap(), ["a"]);
        spoil(1 - newest);
        let open = || Store::open(Box::new(slots.clone())).map(drop);
        assert!(open().unwrap_err().to_string().contains("is damaged"));
        // A later version's.
        let slots = Kept::new();
        let mut store = slots.store();
        store.change(|index| index.format = 9).unwrap();
        let open = || Store::open(Box::new(slots.clone())).map(drop);
        assert!(open().unwrap_err().to_string().contains("a later version"));
    }

    #[test]
    fn what_was_being_written_is_gone_and_unnamed_slots_are_empty() {
        let slots = Kept::new();
        let mut store = slots.store();
        store.create_folders(Path::new("run/.aweigh-0.part")).unwrap();
        put(&mut store, "run/.aweigh-0.part/a", b"x").unwrap();
        put(&mut store, "run/.aweigh-1.part", b"y").unwrap();
        put(&mut store, "run/a", b"z").unwrap();
        slots.0.borrow_mut().write(11, 0, b"left over").unwrap();
        let store = slots.store();
        assert_eq!(store.names(Path::new("run")).unwrap(), ["a"]);
        assert_eq!(store.spare(), 12 - INDEX - 1);
        assert_eq!(slots.0.borrow().size(11).unwrap(), 0);
    }

    #[test]
    fn too_many_files_are_an_error() {
        let mut store = Kept::new().store();
        for i in 0..10 {
            put(&mut store, &i.to_string(), b"x").unwrap();
        }
        assert_eq!(store.spare(), 0);
        assert!(put(&mut store, "more", b"x").unwrap_err().to_string().contains("too many files"));
        store.remove(Path::new("3")).unwrap();
        put(&mut store, "more", b"x").unwrap();
    }
}
