//! Tests of the store.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::files::disk::slots::Memory;

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
