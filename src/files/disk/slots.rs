//! Open files without names, which a [`Store`](super::store::Store) gives names to.

use std::io::{self, ErrorKind};

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

/// A size in bytes of what is to be in memory.
///
/// # Errors
/// A size that memory cannot have.
pub(super) fn in_memory(size: u64) -> io::Result<usize> {
    usize::try_from(size)
        .map_err(|_| io::Error::other(format!("{size} bytes: a tab can use files of up to 4 GiB")))
}

/// `len` bytes of a slot from byte `at` on.
pub(super) fn part(slots: &dyn Slots, slot: usize, at: u64, len: usize) -> io::Result<Vec<u8>> {
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
