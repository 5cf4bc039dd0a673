//! Writing GGUF files of version 3.

use std::io::{self, Write};

use half::{bf16, f16};

use super::{ALIGNMENT, Kind, Value};
use crate::gpu::Blocks;

/// The description of a tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The tensor's name in the file.
    pub name: String,
    /// The storage format of the elements.
    pub kind: Kind,
    /// The sizes of the dimensions, outermost first as in Hugging Face. A row is a multiple of the kind's
    /// block.
    pub shape: Vec<usize>,
}

impl Described {
    fn bytes(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        elements / self.kind.block_elements() * self.kind.block_bytes()
    }
}

/// The bytes of elements of this kind in a file: F32, F16, BF16 or Q8_0; anything else becomes F32.
pub fn encode(values: &[f32], kind: Kind) -> Vec<u8> {
    match kind {
        Kind::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Kind::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Kind::Q8_0 => {
            // In the device's layout a minimum, here 0, follows each scale, and the codes are stored
            // elsewhere.
            let blocks = Blocks::q8(values);
            let both = blocks.scales.chunks_exact(4).zip(blocks.codes.chunks_exact(kind.block_elements()));
            both.flat_map(|(scale, codes)| scale[..2].iter().chain(codes)).copied().collect()
        }
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}

/// Writes everything that comes before the tensors' bytes.
pub fn write_header(
    out: &mut impl Write,
    metadata: &[(String, Value)],
    tensors: &[Described],
) -> io::Result<()> {
    let mut head = Vec::new();
    head.extend(b"GGUF");
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut head, key);
        head.extend(value.number().to_le_bytes());
        bare(&mut head, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        string(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| head.extend((*size as u64).to_le_bytes()));
        head.extend(tensor.kind.to_ggml().to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)
}

/// Writes a tensor's bytes, and zeros up to the beginning of the next tensor.
pub fn write_tensor(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(&[0; ALIGNMENT][..bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()])
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn bare(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.push(*n),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::String(text) => string(out, text),
        Value::Array(elements) => {
            // No reader looks at the element type of an empty array.
            out.extend(elements.first().map_or(0, Value::number).to_le_bytes());
            out.extend((elements.len() as u64).to_le_bytes());
            elements.iter().for_each(|element| bare(out, element));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::Gguf;

    #[test]
    fn what_is_written_is_read() {
        let metadata: Vec<(String, Value)> = [
            ("a", Value::U32(7)),
            ("b", Value::String("text".into())),
            ("c", Value::Array(vec![Value::F32(0.5), Value::F32(-1.0)])),
            ("d", Value::Bool(true)),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .into();
        let values: Vec<f32> = (0..96).map(|i| (i as f32 * 0.37).sin()).collect();
        let described = |kind: Kind| Described { name: kind.name().into(), kind, shape: vec![3, 32] };
        let tensors: Vec<Described> = [Kind::F32, Kind::F16, Kind::Bf16, Kind::Q8_0].map(described).into();
        let mut bytes = Vec::new();
        write_header(&mut bytes, &metadata, &tensors).unwrap();
        for described in &tensors {
            write_tensor(&mut bytes, &encode(&values, described.kind)).unwrap();
        }
        let read = Gguf::parse(&bytes).unwrap();
        assert_eq!(read.metadata, metadata.into_iter().collect());
        for Described { name, kind, shape } in tensors {
            let found = &read.tensors[&name];
            assert_eq!((found.kind, &found.shape), (kind, &shape));
            assert_eq!(*found.bytes.read().unwrap(), encode(&values, kind));
        }
        assert_eq!(Kind::Q8_0.blocks(&read.tensors["Q8_0"].bytes.read().unwrap()), Some(Blocks::q8(&values)));
    }
}
