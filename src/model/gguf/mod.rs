//! GGUF files: metadata and tensors.
//!
//! Layout, all little-endian: `GGUF`, version (u32), tensor count (u64), metadata count (u64); the metadata,
//! each a key (string), a type (u32) and a value; the tensors' descriptions, each a name (string), a
//! dimension count (u32), dimensions (u64, innermost first), a kind (u32) and an offset (u64); zeros up to a
//! multiple of the alignment; the tensors' bytes. Offsets count from the start of these bytes. A string is a
//! length (u64) and UTF-8. An array is an element type (u32), a count (u64) and the elements.
//!
//! A file may come from anyone, so every length in it is checked against the number of bytes that are left
//! before it is used.

use std::collections::BTreeMap;

use super::file_bytes::{FileBytes, Span};
use crate::Error;

mod cursor;
mod export;
mod hf;
mod kinds;
mod tokenizer;
mod value;
mod write;

use cursor::Cursor;
pub(crate) use export::as_neighbours;
pub use export::{Description, Source, describe, describe_adapter};
pub(crate) use hf::in_halves;
pub use hf::{Companions, Named};
pub use kinds::{Kind, ggml_name};
pub use value::Value;
pub use write::{Described, encode, write_header, write_tensor};

/// The default alignment: tensors' bytes start at multiples of this many bytes.
pub const ALIGNMENT: usize = 32;
/// The metadata key for another alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// How many bytes are read first of a file that is not in memory: vocabularies take a few megabytes.
const HEAD: usize = if cfg!(test) { 64 } else { 8 << 20 };
/// The most dimensions of a tensor, as in ggml.
const MAX_DIMENSIONS: usize = 4;
/// Larger alignments are a sign of damage: they would only add padding.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// An error in a file, without the file's name, which the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub fix: &'static str,
}

impl Damage {
    fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        let fix = "download the file again, or another version of it";
        Self { expected: expected.into(), found: found.into(), fix }
    }

    /// For a file that is valid but not supported.
    fn unsupported(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { fix: "use the model's Hugging Face directory instead", ..Self::new(expected, found) }
    }
}

impl Damage {
    /// The error with the file's name.
    pub(crate) fn of(self, file: &str) -> Error {
        Error::input(file, self.expected, self.found, self.fix)
    }
}

/// One tensor as stored.
#[derive(Debug, Clone)]
pub struct TensorInfo<'a> {
    /// The storage format of the elements.
    pub kind: Kind,
    /// Row-major, outermost first, as Hugging Face has it: GGUF's dimensions reversed.
    pub shape: Vec<usize>,
    /// The elements; exactly as many bytes as `kind` and `shape` require.
    pub bytes: Span<'a>,
}

/// A parsed file. Tensors' bytes stay where they are.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    /// The metadata, by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, TensorInfo<'a>>,
}

/// A tensor's description, before its bytes are looked up.
struct Entry {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

impl<'a> Gguf<'a> {
    /// Parses a GGUF file of version 2 or 3, little-endian.
    ///
    /// # Errors
    /// When the bytes are not such a file, are cut off or inconsistent, or have a tensor of a kind that
    /// [`Kind`] lacks.
    pub fn parse(file: impl Into<FileBytes<'a>>) -> Result<Self, Damage> {
        let file = file.into();
        let mut size = match file {
            FileBytes::Memory(bytes) => bytes.len(),
            FileBytes::Reader(_) => HEAD.min(file.len()),
        };
        loop {
            let head = file
                .start(size)
                .map_err(|error| Damage::new("a file that can be read", error.to_string()))?;
            let mut cursor = Cursor::new(&head);
            match Self::of_head(file, &mut cursor) {
                // The description goes on.
                Err(_) if cursor.ran_out() && size < file.len() => {
                    size = size.saturating_mul(8).min(file.len())
                }
                parsed => return parsed,
            }
        }
    }

    /// Parses `file`, whose first bytes are in the cursor.
    fn of_head(file: FileBytes<'a>, cursor: &mut Cursor) -> Result<Self, Damage> {
        header(cursor)?;
        let tensors = cursor.u64("the tensor count")?;
        let pairs = cursor.u64("the metadata count")?;
        // A key's length, a type, a value of one byte.
        let pairs = cursor.count(pairs, 8 + 4 + 1, "metadata entries")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let key = cursor.string("a metadata key")?;
            let value = Value::read(cursor).map_err(|e| within(e, "metadata", &key))?;
            if metadata.contains_key(&key) {
                return Err(Damage::new("metadata keys that differ", format!("{key:?} twice")));
            }
            metadata.insert(key, value);
        }
        let alignment = alignment(&metadata)?;
        // A name's length, a dimension count, a kind, an offset.
        let tensors = cursor.count(tensors, 8 + 4 + 4 + 8, "tensors")?;
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(entry(cursor, alignment)?);
        }
        // Without tensors the file may end unpadded.
        let start = cursor.at().next_multiple_of(alignment).min(file.len());
        Ok(Self { metadata, tensors: place(entries, file, start)? })
    }

    /// The value of `key`, if it is a whole number and not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.as_u64()
    }

    /// The value of `key`, if it is a number.
    pub fn f64(&self, key: &str) -> Option<f64> {
        self.metadata.get(key)?.as_f64()
    }

    /// The value of `key`, if it is a string.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str()
    }
}

/// Checks the magic and the version.
fn header(cursor: &mut Cursor) -> Result<(), Damage> {
    let magic = cursor.take(4, "the file's magic")?;
    if magic != b"GGUF" {
        return Err(Damage::new(
            "a GGUF file",
            format!("a file that starts with \"{}\"", magic.escape_ascii()),
        ));
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        other if other & 0xffff == 0 && other != 0 => {
            Err(Damage::new("a little-endian GGUF file", "a big-endian one"))
        }
        other => Err(Damage::new("GGUF version 2 or 3", format!("version {other}"))),
    }
}

/// The alignment of tensors' bytes, in bytes.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, Damage> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    match value.as_u64() {
        Some(n @ 8..=MAX_ALIGNMENT) if n.is_power_of_two() => Ok(n as usize),
        _ => {
            let expected = format!("{ALIGNMENT_KEY}: a power of two from 8 to {MAX_ALIGNMENT}");
            Err(Damage::new(expected, value.brief()))
        }
    }
}

/// Reads one tensor's description and checks it, except against the other tensors.
fn entry(cursor: &mut Cursor, alignment: usize) -> Result<Entry, Damage> {
    let name = cursor.string("a tensor's name")?;
    let wrong = |expected: String, found: String| Damage::new(format!("tensor {name:?}: {expected}"), found);
    let dimensions = cursor.u32("a tensor's dimension count")? as usize;
    if dimensions > MAX_DIMENSIONS {
        return Err(wrong(format!("at most {MAX_DIMENSIONS} dimensions"), dimensions.to_string()));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let size = cursor.u64("a tensor's dimension")?;
        // No zeros: if one dimension is 0, the others could be anything.
        let fits = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(fits.ok_or_else(|| wrong("a dimension from 1 up".into(), size.to_string()))?);
    }
    let row = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let number = cursor.u32("a tensor's kind")?;
    let kind = Kind::from_ggml(number).ok_or_else(|| {
        let supported = Kind::ALL.map(Kind::name).join(", ");
        wrong(format!("a kind among {supported}"), format!("{} (number {number})", ggml_name(number)))
    })?;
    if !row.is_multiple_of(kind.block_elements()) {
        let expected =
            format!("rows of a multiple of {} elements for {}", kind.block_elements(), kind.name());
        return Err(wrong(expected, row.to_string()));
    }
    let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let len = elements.and_then(|n| kind.bytes_for(n, row)).ok_or_else(|| {
        wrong("a size that fits memory".into(), format!("shape {shape:?} of {}", kind.name()))
    })?;
    let offset = cursor.u64("a tensor's offset")?;
    let offset = usize::try_from(offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(alignment))
        .ok_or_else(|| wrong(format!("an offset that is a multiple of {alignment}"), offset.to_string()))?;
    Ok(Entry { name, kind, shape, offset, len })
}

/// Finds each tensor's bytes in `file`, where those of the tensors begin at `start`. Tensors must not
/// overlap: otherwise a small file could claim to be a huge model.
fn place(
    mut entries: Vec<Entry>,
    file: FileBytes<'_>,
    start: usize,
) -> Result<BTreeMap<String, TensorInfo<'_>>, Damage> {
    let all = file.len() - start;
    entries.sort_by_key(|entry| (entry.offset, entry.len));
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for Entry { name, kind, shape, offset, len } in entries {
        if offset.checked_add(len).is_none_or(|end| end > all) {
            let expected = format!("tensor {name:?}: {len} bytes from offset {offset}");
            return Err(Damage::new(expected, format!("{all} bytes of tensor data in all")));
        }
        let bytes = Span { file, start: start + offset, len };
        if offset < end {
            let found = format!("offset {offset}, before the end of another at {end}");
            return Err(Damage::new(format!("tensor {name:?}: no overlap with another tensor"), found));
        }
        end = end.max(offset + len);
        if tensors.contains_key(&name) {
            return Err(Damage::new("tensor names that differ", format!("{name:?} twice")));
        }
        tensors.insert(name, TensorInfo { kind, shape, bytes });
    }
    Ok(tensors)
}

/// Adds the place in the file to the error.
fn within(damage: Damage, what: &str, name: &str) -> Damage {
    Damage { expected: format!("{what} {name:?}: {}", damage.expected), ..damage }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    const SMALL: &[u8] = include_bytes!("../../../tests/golden/gguf/small.gguf");

    /// A file that gguf-py wrote.
    #[test]
    fn a_file_is_read() {
        let file = Gguf::parse(SMALL).unwrap();
        assert!(!file.metadata.is_empty() && !file.tensors.is_empty());
        for tensor in file.tensors.values() {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(
                tensor.kind.bytes_for(elements, tensor.shape[tensor.shape.len() - 1]),
                Some(tensor.bytes.len())
            );
        }
        assert!(Gguf::parse(b"GGUF").is_err());
        let message = Gguf::parse(&SMALL[..SMALL.len() - 40]).unwrap_err();
        assert!(message.expected.contains("tensor"), "{message:?}");
    }

    /// Bytes changed at random, and files cut short: an error or a file, never a panic.
    #[test]
    fn damaged_files_are_refused() {
        let mut refused = 0;
        for round in 0..20_000u32 {
            let mut bytes = SMALL.to_vec();
            let draw = |i: u32| rng::pcg4d([round, i, 0x66, 7])[0];
            for change in 0..1 + draw(0) % 4 {
                let at = draw(3 * change + 1) as usize % bytes.len();
                bytes[at] = match draw(3 * change + 2) % 3 {
                    0 => 0,
                    1 => 255,
                    _ => draw(3 * change + 3) as u8,
                };
            }
            if draw(99).is_multiple_of(5) {
                bytes.truncate(draw(100) as usize % bytes.len());
            }
            match Gguf::parse(&bytes) {
                Err(_) => refused += 1,
                Ok(file) => {
                    let _ = (file.companions().is_ok(), file.names().is_ok());
                    for tensor in file.tensors.values() {
                        let _ = tensor
                            .kind
                            .blocks(&tensor.bytes.read().unwrap())
                            .map(|blocks| blocks.values().len());
                    }
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
