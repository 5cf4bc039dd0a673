//! ggml's tensor kinds: their block layouts, and their conversion to the device's layout.
//!
//! A quantised row is a run of blocks, each with its own scale. Everything is little-endian.

use half::f16;

use crate::gpu::{Blocks, DType};

/// Elements of a simple block.
const SIMPLE: usize = 32;
/// Elements of a K-quant's super-block.
const SUPER: usize = 256;

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// 4 bytes an element, IEEE single.
    F32,
    /// 2 bytes an element, IEEE half.
    F16,
    /// 2 bytes an element, the upper half of an f32.
    Bf16,
    /// 34 bytes for 32 elements: scale `d` (f16), then 32 signed bytes `q`. Value: `q * d`.
    Q8_0,
    /// 18 bytes for 32 elements: scale `d` (f16), then 16 bytes `qs`. Byte `j` has element `j` in its low
    /// half and element `j + 16` in its high half. Value: `d * (q - 8)`.
    Q4_0,
    /// 20 bytes for 32 elements: scale `d` (f16), minimum `m` (f16), then 16 bytes as in [`Kind::Q4_0`].
    /// Value: `d * q + m`.
    Q4_1,
    /// 22 bytes for 32 elements: scale `d` (f16), `qh` (u32), then 16 bytes as in [`Kind::Q4_0`]. Bit `i` of
    /// `qh` is the fifth bit of element `i`. Value: `d * (q - 16)`.
    Q5_0,
    /// 24 bytes for 32 elements: scale `d` (f16), minimum `m` (f16), `qh` (u32) and 16 bytes as in
    /// [`Kind::Q5_0`]. Value: `d * q + m`.
    Q5_1,
    /// 144 bytes for 256 elements in 8 sub-blocks of 32: `d` (f16), `dmin` (f16), 12 bytes with a 6-bit scale
    /// and minimum for each sub-block, then 128 bytes `qs`. Bytes `32g..32g + 32` have sub-block `2g` in
    /// their low halves and `2g + 1` in their high halves. Value: `(d * scale) * q - dmin * minimum`.
    ///
    /// The 12 bytes: sub-block `s < 4` has its scale in the low 6 bits of byte `s` and its minimum in those
    /// of byte `s + 4`. Sub-block `s >= 4` has the low 4 bits of both in byte `s + 4` (scale low, minimum
    /// high), and the upper 2 bits in the top of bytes `s - 4` and `s`.
    Q4K,
    /// 176 bytes for 256 elements: as [`Kind::Q4K`], with 32 bytes `qh` between the scales and `qs`. Bit `s`
    /// of `qh[l]` is the fifth bit of element `l` of sub-block `s`.
    Q5K,
    /// 210 bytes for 256 elements in 16 sub-blocks of 16: 128 bytes `ql`, 64 bytes `qh`, 16 signed bytes of
    /// scales, `d` (f16). Each half of 128 elements is 4 rows of 32: row `r` has its low 4 bits in `ql[64 *
    /// half + 32 * (r & 1) + l]` (low half for `r < 2`, else high) and its upper 2 bits in bits `2r` of
    /// `qh[32 * half + l]`. Value: `(d * scale) * (q - 32)`.
    Q6K,
}

impl Kind {
    /// Every kind, in ggml's numbering.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Bf16,
    ];

    /// Elements of one block. A row's length is a multiple of it.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => SIMPLE,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// ggml's name of the kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// ggml's number of the kind, as in GGUF files.
    pub const fn to_ggml(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The kind of ggml's `number`, if it is one of [`Kind::ALL`].
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_ggml() == number)
    }

    /// Bytes of `elements` elements in rows of `row`; `None` if a row is not whole blocks or the size
    /// overflows.
    pub fn bytes_for(self, elements: usize, row: usize) -> Option<usize> {
        if !row.is_multiple_of(self.block_elements()) || !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

/// ggml's name of a kind by its number, also of those that [`Kind`] lacks; for messages.
pub fn ggml_name(number: u32) -> &'static str {
    if let Some(kind) = Kind::from_ggml(number) {
        return kind.name();
    }
    match number {
        4 => "Q4_2 (withdrawn)",
        5 => "Q4_3 (withdrawn)",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => "unknown",
    }
}

impl Kind {
    /// The type of the tensor on the device.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
            Self::Q4_0 | Self::Q4_1 => DType::Q4,
            Self::Q8_0 | Self::Q5_0 | Self::Q5_1 => DType::Q8,
            Self::Q4K => DType::Q4K,
            Self::Q5K => DType::Q5K,
            Self::Q6K => DType::Q6K,
        }
    }

    /// The codes and scales of whole blocks, in the device's layout: their values are
    /// bit-identical. `None` for a kind that is not quantised.
    pub fn blocks(self, bytes: &[u8]) -> Option<Blocks> {
        let dtype = self.dtype();
        let mut out = Blocks {
            dtype,
            len: bytes.len() / self.block_bytes() * self.block_elements(),
            codes: Vec::new(),
            scales: Vec::new(),
            supers: Vec::new(),
        };
        let repack: fn(&[u8], &mut Blocks) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q8_0 => q8_0,
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        out.codes.reserve(dtype.size(out.len));
        bytes.chunks_exact(self.block_bytes()).for_each(|block| repack(block, &mut out));
        Some(out)
    }
}

/// Packs 4-bit codes into bytes, two neighbours in each.
fn pairs(codes: impl Iterator<Item = u8>) -> impl Iterator<Item = u8> {
    let mut codes = codes;
    std::iter::from_fn(move || Some(codes.next()? | (codes.next()? << 4)))
}

/// The 32 codes of bytes whose low halves come first.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// The same 32 codes, with their fifth bits from `high`.
fn fives(bytes: &[u8], high: &[u8]) -> impl Iterator<Item = u8> {
    nibbles(bytes).enumerate().map(|(i, low)| low | (((high[i / 8] >> (i % 8)) & 1) << 4))
}

fn q8_0(block: &[u8], out: &mut Blocks) {
    out.codes.extend(&block[2..]);
    out.scales.extend([block[0], block[1], 0, 0]);
}

/// A power of two times an f16 is exact, unless it leaves f16's range.
fn q4_0(block: &[u8], out: &mut Blocks) {
    let minimum = f16::from_f32(-8.0 * f16::from_le_bytes([block[0], block[1]]).to_f32()).to_le_bytes();
    out.codes.extend(pairs(nibbles(&block[2..])));
    out.scales.extend([block[0], block[1], minimum[0], minimum[1]]);
}

fn q4_1(block: &[u8], out: &mut Blocks) {
    out.codes.extend(pairs(nibbles(&block[4..])));
    out.scales.extend(&block[..4]);
}

fn q5_0(block: &[u8], out: &mut Blocks) {
    out.codes.extend(fives(&block[6..], &block[2..6]).map(|code| code.wrapping_sub(16)));
    out.scales.extend([block[0], block[1], 0, 0]);
}

fn q5_1(block: &[u8], out: &mut Blocks) {
    out.codes.extend(fives(&block[8..], &block[4..8]));
    out.scales.extend(&block[..4]);
}

/// The 6-bit scale and minimum of each of 8 sub-blocks, from 12 packed bytes.
fn scales_and_minima(packed: &[u8]) -> impl Iterator<Item = u8> {
    (0..8).flat_map(move |s| {
        if s < 4 {
            [packed[s] & 63, packed[s + 4] & 63]
        } else {
            let low = packed[s + 4];
            [(low & 15) | ((packed[s - 4] >> 6) << 4), (low >> 4) | ((packed[s] >> 6) << 4)]
        }
    })
}

/// The 256 low halves of a super-block's codes: of 64 elements, the first 32 lie in the low halves of 32
/// bytes.
fn lows(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.chunks_exact(32).flat_map(nibbles)
}

fn q4_k(block: &[u8], out: &mut Blocks) {
    out.codes.extend(pairs(lows(&block[16..])));
    out.scales.extend(scales_and_minima(&block[4..16]));
    out.supers.extend(&block[..4]);
}

fn q5_k(block: &[u8], out: &mut Blocks) {
    let high = |i: usize| ((block[16 + i % 32] >> (i / 32)) & 1) << 4;
    out.codes.extend(lows(&block[48..]).enumerate().map(|(i, low)| low | high(i)));
    out.scales.extend(scales_and_minima(&block[4..16]));
    out.supers.extend(&block[..4]);
}

fn q6_k(block: &[u8], out: &mut Blocks) {
    for (row, l) in (0..8).flat_map(|row| (0..32).map(move |l| (row, l))) {
        let (part, r) = (row / 4, row % 4);
        let low = (block[part * 64 + r % 2 * 32 + l] >> (r / 2 * 4)) & 15;
        let high = (block[128 + part * 32 + l] >> (r * 2)) & 3;
        out.codes.push((low | (high << 4)).wrapping_sub(32));
    }
    out.scales.extend(&block[192..208]);
    out.supers.extend([block[208], block[209], 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that gguf-py wrote or made up, with the values it reads in them.
    #[test]
    fn values_are_those_of_gguf_py() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        for kind in Kind::ALL.into_iter().filter(|kind| kind.dtype().is_quantised()) {
            let read =
                |ending: &str| std::fs::read(folder.join(format!("{}.{ending}", kind.name()))).unwrap();
            let expected: Vec<u32> =
                read("f32").chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let found = kind.blocks(&read("blocks")).unwrap();
            assert_eq!(found.bytes().len(), kind.dtype().size(found.len));
            let values = found.values();
            assert_eq!(values.len(), expected.len(), "{}", kind.name());
            for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
                let expected = f32::from_bits(expected);
                // 0 and -0 count as equal. Values with a NaN or infinite scale, or a scale so large that -8
                // times it overflows, are skipped: real weights have none.
                let odd = !expected.is_finite() || !value.is_finite() || expected.abs() > 8000.0;
                assert!(odd || *value == expected, "{} {i}: {value}, {expected}", kind.name());
            }
        }
    }
}
