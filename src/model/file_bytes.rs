//! The bytes of a file of weights, in memory or where they are.

use std::borrow::Cow;
use std::io;

/// Reads parts of a file.
pub trait ReadBytes: Send + Sync {
    /// The file's size in bytes.
    fn len(&self) -> usize;

    /// Whether it is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes from byte `start` on.
    ///
    /// # Errors
    /// Those of the file system.
    fn read(&self, start: usize, len: usize) -> io::Result<Vec<u8>>;
}

/// The bytes of a file.
#[derive(Clone, Copy)]
pub enum FileBytes<'a> {
    /// All of them, in memory or mapped into it.
    Memory(&'a [u8]),
    /// A file whose parts are read when they are needed, where files cannot be mapped.
    Reader(&'a dyn ReadBytes),
}

impl std::fmt::Debug for FileBytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl<'a> From<&'a [u8]> for FileBytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Memory(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for FileBytes<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Memory(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for FileBytes<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Memory(bytes)
    }
}

impl<'a> FileBytes<'a> {
    /// The file's size in bytes.
    pub fn len(self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Reader(file) => file.len(),
        }
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The first `len` bytes, or all of them if the file is shorter.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn start(self, len: usize) -> io::Result<Cow<'a, [u8]>> {
        Span { file: self, start: 0, len: len.min(self.len()) }.read()
    }

    /// Calls `work` with all bytes, part by part.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn in_parts(self, mut work: impl FnMut(&[u8])) -> io::Result<()> {
        /// Bytes of a part.
        const PART: usize = 4 << 20;
        match self {
            Self::Memory(bytes) => work(bytes),
            Self::Reader(file) => {
                for start in (0..file.len()).step_by(PART) {
                    work(&file.read(start, PART.min(file.len() - start))?);
                }
            }
        }
        Ok(())
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    pub(super) file: FileBytes<'a>,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl<'a> Span<'a> {
    /// All bytes of `file`.
    pub fn all(file: FileBytes<'a>) -> Self {
        Self { file, start: 0, len: file.len() }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes. It must be inside the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn read(&self) -> io::Result<Cow<'a, [u8]>> {
        match self.file {
            FileBytes::Memory(bytes) => Ok(Cow::Borrowed(&bytes[self.start..self.start + self.len])),
            FileBytes::Reader(file) => file.read(self.start, self.len).map(Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Weights;
    use crate::model::gguf::Gguf;

    /// A file that is only read.
    struct OnDisk(Vec<u8>);

    impl ReadBytes for OnDisk {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn read(&self, start: usize, len: usize) -> io::Result<Vec<u8>> {
            let part = self.0.get(start..start + len);
            part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    const GGUF: &[u8] = include_bytes!("../../tests/golden/gguf/small.gguf");
    const SAFETENSORS: &[u8] = include_bytes!("../../assets/tiny/model.safetensors");

    #[test]
    fn weights_are_the_same_from_memory_and_part_by_part() {
        let file = OnDisk(SAFETENSORS.to_vec());
        let read = Weights::parse([("file", FileBytes::Reader(&file))], "file").unwrap();
        let whole = Weights::parse([("file", SAFETENSORS)], "file").unwrap();
        assert!(!whole.list().is_empty() && read.list() == whole.list());
        for tensor in whole.list() {
            let of = |weights: &Weights| weights.get(&tensor.name, &tensor.shape).unwrap().to_f32();
            assert_eq!(of(&read), of(&whole), "{}", tensor.name);
        }
        let mut parts: Vec<u8> = Vec::new();
        FileBytes::Reader(&file).in_parts(|part| parts.extend(part)).unwrap();
        assert_eq!(parts, SAFETENSORS);
        // In tests, less is read first than a description has.
        let file = OnDisk(GGUF.to_vec());
        let (read, whole) = (Gguf::parse(FileBytes::Reader(&file)).unwrap(), Gguf::parse(GGUF).unwrap());
        assert_eq!(read.metadata, whole.metadata);
        assert!(!whole.tensors.is_empty() && read.tensors.len() == whole.tensors.len());
        for (name, tensor) in &whole.tensors {
            assert_eq!(read.tensors[name].bytes.read().unwrap(), tensor.bytes.read().unwrap(), "{name}");
        }
    }

    #[test]
    fn files_that_end_early_are_refused() {
        for len in [0, 3, 8, 40, SAFETENSORS.len() / 2, SAFETENSORS.len() - 1] {
            let file = OnDisk(SAFETENSORS[..len].to_vec());
            assert!(Weights::parse([("file", FileBytes::Reader(&file))], "file").is_err(), "{len}");
        }
        for len in [0, 3, 8, 40, GGUF.len() / 2, GGUF.len() - 40] {
            let file = OnDisk(GGUF[..len].to_vec());
            assert!(Gguf::parse(FileBytes::Reader(&file)).is_err(), "{len}");
        }
    }
}
