//! The layout of quantised weights in a tensor: all codes, then all scales, then all scales of scales, so
//! that one load reads neighbouring values.

use half::f16;

use super::DType;

/// Quantised elements on the host.
///
/// - Codes: 4 bits each, two in a byte, the first in the low half; or one signed byte each ([`DType::Q8`],
///   [`DType::Q6K`], and [`DType::Q5K`], whose codes are never negative).
/// - Scales, one entry for each block: [`DType::Q4`] and [`DType::Q8`] have an f16 scale and an f16 minimum;
///   [`DType::Nf4`] an f16 scale; [`DType::Q4K`] and [`DType::Q5K`] a byte for the scale and one for the
///   minimum; [`DType::Q6K`] a signed byte.
/// - Scales of scales, one entry for 256 elements: [`DType::Q4K`] and [`DType::Q5K`] have an f16 factor on
///   the scales and one on the minima, which are subtracted; [`DType::Q6K`] an f16 factor and two unused
///   bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// One of the quantised types.
    pub dtype: DType,
    /// Number of elements.
    pub len: usize,
    /// Codes of the elements.
    pub codes: Vec<u8>,
    /// Scales of the blocks.
    pub scales: Vec<u8>,
    /// Scales of scales; empty for [`DType::Q4`], [`DType::Q8`] and [`DType::Nf4`].
    pub supers: Vec<u8>,
}

/// A type that unquantised weights can be quantised to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "lower"))]
pub enum Quantize {
    /// 4 bits, the quantiles of a normal distribution: QLoRA's type
    Nf4,
    /// 8 bits in even steps
    Q8,
}

impl Quantize {
    /// The element type of the quantised tensor.
    pub fn dtype(self) -> DType {
        match self {
            Self::Nf4 => DType::Nf4,
            Self::Q8 => DType::Q8,
        }
    }
}

impl Blocks {
    /// Concatenates blocks of one type.
    ///
    /// # Panics
    /// When there are no blocks, or their types differ: a bug in the caller.
    pub fn join<'a>(parts: impl IntoIterator<Item = &'a Blocks>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().cloned().unwrap_or_else(|| panic!("no blocks"));
        for part in parts {
            assert_eq!(part.dtype, all.dtype, "blocks of one type");
            all.len += part.len;
            all.codes.extend(&part.codes);
            all.scales.extend(&part.scales);
            all.supers.extend(&part.supers);
        }
        all
    }

    /// `len` elements from `start` on. Both are multiples of the type's block size.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let part = |bytes: &[u8]| {
            let at = |element: usize| (bytes.len() as u64 * element as u64 / self.len.max(1) as u64) as usize;
            bytes[at(start)..at(start + len)].to_vec()
        };
        let [codes, scales, supers] = [&self.codes, &self.scales, &self.supers].map(|bytes| part(bytes));
        Self { dtype: self.dtype, len, codes, scales, supers }
    }

    /// The bytes of a tensor that holds these blocks.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.dtype.size(self.len));
        for (part, size) in
            [&self.codes, &self.scales, &self.supers].into_iter().zip(self.dtype.regions(self.len))
        {
            assert!(
                part.len() <= size && size < part.len() + 4,
                "{:?}: {} bytes for {size}",
                self.dtype,
                part.len()
            );
            let end = all.len() + size;
            all.extend(part);
            all.resize(end, 0);
        }
        all
    }

    /// The first element of the first block whose scale or minimum is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<usize> {
        // The f16 values, and the elements that each stands for. A scale and a minimum belong to the same
        // elements; the minimum of Q6_K is unused.
        let (halves, elements) = match self.dtype {
            DType::Nf4 => (&self.scales, 32),
            DType::Q4 | DType::Q8 => (&self.scales, 32 / 2),
            _ => (&self.supers, 256 / 2),
        };
        let odd = halves.chunks_exact(2).position(|b| !f16::from_le_bytes([b[0], b[1]]).is_finite())?;
        Some(odd * elements / self.dtype.block() * self.dtype.block())
    }

    /// The elements as f32, with the arithmetic of ggml and of the kernels.
    pub fn values(&self) -> Vec<f32> {
        (0..self.len).map(|i| self.value(i)).collect()
    }

    fn value(&self, i: usize) -> f32 {
        let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32();
        let (byte, nibble) = (|| self.codes[i] as i8, || (self.codes[i / 2] >> (4 * (i & 1))) & 15);
        let pair = |at: usize| (half(&self.scales, 2 * at), half(&self.scales, 2 * at + 1));
        let under = || {
            let own = |of: usize| f32::from(self.scales[2 * (i / 32) + of]);
            (half(&self.supers, 2 * (i / 256)) * own(0), -(half(&self.supers, 2 * (i / 256) + 1) * own(1)))
        };
        let (code, (scale, added)) = match self.dtype {
            DType::Q4 => (f32::from(nibble()), pair(i / 32)),
            DType::Q8 => (f32::from(byte()), pair(i / 32)),
            DType::Q4K => (f32::from(nibble()), under()),
            DType::Q5K => (f32::from(byte()), under()),
            DType::Q6K => {
                let own = f32::from(self.scales[i / 16] as i8);
                (f32::from(byte()), (half(&self.supers, 2 * (i / 256)) * own, 0.0))
            }
            DType::Nf4 => (NF4[usize::from(nibble())], (half(&self.scales, i / 32), 0.0)),
            DType::F32 | DType::Bf16 | DType::F16 | DType::U32 => (0.0, (0.0, 0.0)),
        };
        code * scale + added
    }

    /// `len` elements roughly in [-1, 1], generated from `words`: for checks and benches, which need no real
    /// weights. Some scales are subnormal.
    pub fn made_up(dtype: DType, len: usize, mut words: impl FnMut() -> u32) -> Self {
        let mut bytes =
            |count: usize, mask: u8| -> Vec<u8> { (0..count).map(|_| words() as u8 & mask).collect() };
        let (blocks, wide) = (len / 32, len / 256);
        let codes = match dtype {
            DType::Q5K => bytes(len, 31),
            DType::Q8 | DType::Q6K => bytes(len, 255),
            _ => bytes(len / 2, 255),
        };
        let scales = match dtype {
            DType::Q4K | DType::Q5K => bytes(2 * blocks, 63),
            DType::Q6K => bytes(2 * blocks, 255),
            _ => Vec::new(),
        };
        // Scales are sized so that the largest element is about 1. Every eleventh scale is a hundred thousand
        // times smaller.
        let mut halves = |count: usize, size: f32| -> Vec<u8> {
            let small = |i: usize| if i % 11 == 5 { 1e-5 } else { 1.0 };
            let one = |i| f16::from_f32(size * small(i) * (words() % 1024) as f32 / 1024.0).to_le_bytes();
            (0..count).flat_map(one).collect()
        };
        let (scales, supers) = match dtype {
            DType::Q4 => (halves(2 * blocks, 1.0 / 16.0), Vec::new()),
            DType::Q8 => (halves(2 * blocks, 1.0 / 128.0), Vec::new()),
            DType::Nf4 => (halves(blocks, 1.0), Vec::new()),
            DType::Q4K => (scales, halves(2 * wide, 1.0 / 1024.0)),
            DType::Q5K => (scales, halves(2 * wide, 1.0 / 2048.0)),
            _ => {
                (scales, (0..wide).flat_map(|_| [&halves(1, 1.0 / 16384.0)[..], &[0, 0]].concat()).collect())
            }
        };
        Self { dtype, len, codes, scales, supers }
    }

    /// Quantises `values`, whole blocks of 32, on all cores.
    pub fn quantized(values: &[f32], quantize: Quantize) -> Self {
        let make = match quantize {
            Quantize::Nf4 => Self::nf4,
            Quantize::Q8 => Self::q8,
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        if threads == 1 {
            return make(values);
        }
        let share = values.len().div_ceil(threads).next_multiple_of(32).max(1 << 16);
        let parts: Vec<Self> = std::thread::scope(|scope| {
            let at_work: Vec<_> = values.chunks(share).map(|part| scope.spawn(move || make(part))).collect();
            at_work
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        Self::join(&parts)
    }

    /// 8-bit codes of `values`, whole blocks of 32, in steps of 1/127 of the block's largest absolute value:
    /// ggml's Q8_0.
    pub fn q8(values: &[f32]) -> Self {
        let (mut codes, mut scales) =
            (Vec::with_capacity(values.len()), Vec::with_capacity(values.len() / 8));
        for block in values.chunks_exact(DType::Q8.block()) {
            let step = block.iter().fold(0.0, |most: f32, v| most.max(v.abs())) / 127.0;
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            scales.extend(f16::from_f32(step).to_le_bytes());
            scales.extend([0, 0]);
            codes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
        }
        Self { dtype: DType::Q8, len: values.len(), codes, scales, supers: Vec::new() }
    }

    /// NF4 codes of `values`, whole blocks of 32. An element is the nearest quantile times the block's
    /// largest absolute value (Dettmers et al., 2305.14314, but with smaller blocks and an f16 scale for
    /// each).
    pub fn nf4(values: &[f32]) -> Self {
        let (mut codes, mut scales) =
            (Vec::with_capacity(values.len() / 2), Vec::with_capacity(values.len() / 16));
        for block in values.chunks_exact(DType::Nf4.block()) {
            let scale = f16::from_f32(block.iter().fold(0.0, |most: f32, v| most.max(v.abs())));
            scales.extend(scale.to_le_bytes());
            let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
            codes.extend(
                block
                    .chunks_exact(2)
                    .map(|pair| nearest(pair[0] * inverse) | (nearest(pair[1] * inverse) << 4)),
            );
        }
        Self { dtype: DType::Nf4, len: values.len(), codes, scales, supers: Vec::new() }
    }
}

/// The code of the quantile nearest to `value`.
fn nearest(value: f32) -> u8 {
    NF4.windows(2).take_while(|pair| value > (pair[0] + pair[1]) / 2.0).count() as u8
}

/// The quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al., 2305.14314, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nf4_takes_the_nearest_quantile() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) / 16.0).collect();
        let blocks = Blocks::nf4(&values);
        assert_eq!(blocks.bytes().len(), DType::Nf4.size(64));
        for (block, found) in values.chunks(32).zip(blocks.values().chunks(32)) {
            let most = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for (value, found) in block.iter().zip(found) {
                let best = NF4.iter().map(|q| (q * most - value).abs()).fold(f32::INFINITY, f32::min);
                assert!((found - value).abs() <= best + 1e-3 * most, "{value} became {found}");
            }
        }
        assert_eq!(Blocks::nf4(&[0.0; 32]).values(), [0.0; 32]);
        let mut large = [1.0; 96];
        assert_eq!(Blocks::nf4(&large).first_not_finite(), None);
        large[70] = 70_000.0;
        assert_eq!(Blocks::nf4(&large).first_not_finite(), Some(64), "f16 cannot hold the scale");
    }

    #[test]
    fn q8_is_half_a_step_off_at_most() {
        let values: Vec<f32> = (0..1 << 18).map(|i| ((i * 37 % 977) as f32 - 488.0) / 97.0).collect();
        let found = Blocks::quantized(&values, Quantize::Q8);
        assert_eq!(found, Blocks::q8(&values), "on several cores");
        for (block, found) in values.chunks(32).zip(found.values().chunks(32)) {
            let step = block.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
            for (value, found) in block.iter().zip(found) {
                assert!((found - value).abs() <= 0.5 * step + 1e-3 * value.abs(), "{value} became {found}");
            }
        }
    }

    #[test]
    fn parts_join_to_the_whole() {
        let values: Vec<f32> = (0..160).map(|i| (i as f32 * 0.37).sin()).collect();
        let whole = Blocks::nf4(&values);
        let parts = [whole.slice(0, 32), whole.slice(32, 96), whole.slice(128, 32)];
        assert_eq!(Blocks::join(&parts), whole);
        assert_eq!(parts[1].values(), whole.values()[32..128]);
    }
}
