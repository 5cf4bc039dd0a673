//! Tolerances for comparing a device's results with the references.

/// How far a device's value may differ from the reference's.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Absolute tolerance, for every element.
    pub abs: f64,
    /// Relative tolerance: a share of the expected value.
    pub eps: f64,
}

/// For all f32 results. WGSL lets `exp` be off by (3 + 2|x|) units in the last place and `log` by 2^-21; sums
/// here are short. Weights in bf16 and f16 are unpacked exactly and need no tolerance of their own.
pub const F32: Tolerance = Tolerance { abs: 2e-5, eps: 2e-5 };

/// The error of a product x·w whose inputs were rounded to f16, as a share of |x||w|: 2^-10 for each of the
/// two inputs, as a device may round toward zero. The error of a sum of products is at most this share of the
/// sum of their absolute values.
pub const F16_PRODUCT: f64 = 2.0 / 1024.0;
