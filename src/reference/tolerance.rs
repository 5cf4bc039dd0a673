//! What a device may differ by.

/// What a device's value may differ from the reference's by.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Allowed for every element.
    pub abs: f64,
    /// Allowed in proportion to the expected value.
    pub eps: f64,
}

/// For all f32 results. WGSL lets `exp` be off by (3 + 2|x|) units in the last place and `log` by 2^-21; sums
/// here are short. Weights in bf16 and f16 are unpacked exactly and need no tolerance of their own.
pub const F32: Tolerance = Tolerance { abs: 2e-5, eps: 2e-5 };

/// The share of |x||w| by which a product of inputs that were rounded to f16 may be off: 2^-10 for each of
/// the two, as a device may round toward zero. A sum of products may be off by that share of the sum of their
/// sizes.
pub const F16_PRODUCT: f64 = 2.0 / 1024.0;
