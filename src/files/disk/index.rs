//! The names of a store's files, in the first two slots in turn.
//!
//! A slot holds the CRC-32 and the length of a JSON text, and the text.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

use serde::{Deserialize, Serialize};

use super::slots::{Slots, in_memory, part};

/// The slots of the index.
pub(super) const INDEX: usize = 2;
/// Version of the index: raised when an earlier version of this program could not read it.
const FORMAT: u32 = 1;
/// The size of the index's slots is a multiple of this many bytes.
const STEP: usize = 64 << 10;

/// What the index holds. Names are paths with `/`, without one in front.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    /// [`FORMAT`].
    pub format: u32,
    /// Raised with each change.
    pub number: u64,
    /// The slot of each file.
    pub files: BTreeMap<String, usize>,
    /// All folders but the root.
    pub folders: BTreeSet<String>,
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

impl Index {
    /// The newest index in `slots`; an empty one if they hold none.
    ///
    /// # Errors
    /// Fewer than three slots; an index that is damaged, or of a later version of this program; those of the
    /// browser.
    pub fn read(slots: &dyn Slots) -> io::Result<Self> {
        if slots.count() <= INDEX {
            return Err(io::Error::other("too few slots"));
        }
        let invalid = |text| Err(io::Error::new(ErrorKind::InvalidData, text));
        let found = (0..INDEX).map(|slot| index_in(slots, slot)).collect::<io::Result<Vec<_>>>()?;
        let is_empty = found.iter().all(|found| matches!(found, Found::Nothing));
        let newest = found.into_iter().filter_map(Found::index).max_by_key(|index| index.number);
        match newest {
            Some(index) if index.format != FORMAT => {
                invalid("the files were kept by a later version of this page: reload it")
            }
            Some(index) => Ok(index),
            None if is_empty => Ok(Self { format: FORMAT, ..Self::default() }),
            None => invalid("the list of files is damaged: clear this site's data in the browser"),
        }
    }

    /// Writes the index into the slot of the one before the last. If that fails, the last one counts.
    ///
    /// # Errors
    /// Those of the browser.
    pub fn write(&self, slots: &mut dyn Slots) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let head = [crc32fast::hash(&text).to_le_bytes(), (text.len() as u32).to_le_bytes()].concat();
        let bytes = [head, text].concat();
        let slot = (self.number % INDEX as u64) as usize;
        let wide = bytes.len().next_multiple_of(STEP) as u64;
        let mut write = || {
            if slots.size(slot)? < wide {
                slots.resize(slot, wide)?;
            }
            slots.write(slot, 0, &bytes)?;
            slots.flush(slot)
        };
        let written = write();
        if written.is_err() {
            // It may be on the disk anyway. If this fails too, the checksum of what was half written tells.
            let _ = slots.write(slot, 0, &[0; 8]);
        }
        written
    }
}
