//! Reads forward through untrusted bytes.

use std::cell::Cell;

use super::Damage;

/// The most array elements in a whole file. A [`super::Value`] takes 32 bytes where its element may take one
/// in the file, so the count is bounded for all arrays together. The largest vocabulary that was
/// examined, Gemma 4's, has 1.3 million in all.
const MAX_ELEMENTS: usize = 1 << 22;

/// A position in the bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    elements: usize,
    /// Whether bytes were asked for beyond the end.
    ran_out: Cell<bool>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, elements: 0, ran_out: Cell::new(false) }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Whether bytes were asked for beyond the end.
    pub(super) fn ran_out(&self) -> bool {
        self.ran_out.get()
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes. `what` is for the message.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Damage> {
        if n > self.left() {
            self.ran_out.set(true);
            let found = format!("{} bytes left at byte {}", self.left(), self.at);
            return Err(Damage::new(format!("{n} bytes of {what}"), found));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Damage> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Damage> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Damage> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: a length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<String, Damage> {
        let len = self.u64(what)?;
        let len = self.count(len, 1, "bytes of a string")?;
        let at = self.at;
        match std::str::from_utf8(self.take(len, what)?) {
            Ok(text) => Ok(text.to_string()),
            Err(e) => Err(Damage::new(format!("{what} in UTF-8"), format!("{e}, at byte {at}"))),
        }
    }

    /// `n` as a count of items of at least `least` bytes each. Fails if too few bytes are left for that many.
    pub(super) fn count(&self, n: u64, least: usize, what: &str) -> Result<usize, Damage> {
        let room = self.left() / least;
        usize::try_from(n).ok().filter(|n| *n <= room).ok_or_else(|| {
            self.ran_out.set(true);
            let expected =
                format!("at most {room} {what} in the {} bytes left at byte {}", self.left(), self.at);
            Damage::new(expected, n.to_string())
        })
    }

    /// Like [`Cursor::count`], for an array's elements, which are also counted over the whole file.
    pub(super) fn elements(&mut self, n: u64, least: usize) -> Result<usize, Damage> {
        let n = self.count(n, least, "array elements")?;
        if n > MAX_ELEMENTS - self.elements {
            let expected = format!("at most {MAX_ELEMENTS} array elements in the whole metadata");
            return Err(Damage::new(expected, format!("{n} after {}", self.elements)));
        }
        self.elements += n;
        Ok(n)
    }
}
