//! Quantised weights: the values of codes and scales in the device's layout (see `gpu::Blocks`).

/// A quantised format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4-bit codes c. Every 32 elements have an f16 scale and an f16 minimum: c · scale + minimum.
    Q4,
    /// Signed 8-bit codes, otherwise like [`Format::Q4`].
    Q8,
    /// 4-bit codes c. Every 32 elements have bytes s and m, every 256 have f16 d and e: c · d · s − e · m.
    Q4K,
    /// 8-bit codes, otherwise like [`Format::Q4K`].
    Q5K,
    /// Signed 8-bit codes c. Every 16 elements have a signed byte s, every 256 an f16 d: c · d · s.
    Q6K,
    /// 4-bit codes c, indices of a table. Every 32 elements have an f16 scale: entry c of the table · scale.
    Nf4,
}

impl Format {
    /// The format with this name among the device's types. Any other name gives NF4.
    pub fn named(name: &str) -> Self {
        match name {
            "Q4" => Self::Q4,
            "Q8" => Self::Q8,
            "Q4K" => Self::Q4K,
            "Q5K" => Self::Q5K,
            "Q6K" => Self::Q6K,
            _ => Self::Nf4,
        }
    }
}

/// The sixteen quantiles of QLoRA's appendix E.
const QUANTILES: [f64; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The f16 number with index `at` in `bytes`.
fn half(bytes: &[u8], at: usize) -> f64 {
    let bits = u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    let (sign, exponent, mantissa) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = if exponent == 0 {
        mantissa * 2f64.powi(-24)
    } else {
        (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15)
    };
    if sign == 1 { -size } else { size }
}

/// The values of `len` elements, from their codes, scales and scales of scales.
pub fn forward(format: Format, [codes, scales, supers]: [&[u8]; 3], len: usize) -> Vec<f64> {
    let nibble = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
    let signed = |i: usize| f64::from(codes[i] as i8);
    let pair = |i: usize| (half(scales, 2 * (i / 32)), half(scales, 2 * (i / 32) + 1));
    let under = |i: usize| {
        let (s, m) = (f64::from(scales[2 * (i / 32)]), f64::from(scales[2 * (i / 32) + 1]));
        (half(supers, 2 * (i / 256)) * s, -half(supers, 2 * (i / 256) + 1) * m)
    };
    let line = |code: f64, (scale, added): (f64, f64)| code * scale + added;
    let one = |i: usize| match format {
        Format::Q4 => line(f64::from(nibble(i)), pair(i)),
        Format::Q8 => line(signed(i), pair(i)),
        Format::Q4K => line(f64::from(nibble(i)), under(i)),
        Format::Q5K => line(f64::from(codes[i]), under(i)),
        Format::Q6K => signed(i) * half(supers, 2 * (i / 256)) * f64::from(scales[i / 16] as i8),
        Format::Nf4 => QUANTILES[usize::from(nibble(i))] * half(scales, i / 32),
    };
    (0..len).map(one).collect()
}

#[test]
fn by_hand() {
    // 0x3c00 is 1, 0xc000 is -2, 0x0001 the smallest f16.
    let (codes, scales) = ([0x21; 16], [0x00, 0x3c, 0x00, 0xc0]);
    assert_eq!(forward(Format::Q4, [&codes, &scales, &[]], 32)[..3], [-1.0, 0.0, -1.0]);
    assert_eq!(forward(Format::Q8, [&[0xff; 32], &scales, &[]], 32)[0], -3.0);
    assert_eq!(
        forward(Format::Nf4, [&[0xf0; 16], &[0x01, 0x00], &[]], 32)[..2],
        [-(2f64.powi(-24)), 2f64.powi(-24)]
    );
    let supers = [0x00, 0x3c, 0x00, 0xc0];
    assert_eq!(forward(Format::Q4K, [&[0x21; 128], &[3; 16], &supers], 256)[..2], [9.0, 12.0]);
    assert_eq!(forward(Format::Q6K, [&[0xff; 256], &[0xfe; 16], &supers], 256)[0], 2.0);
}
