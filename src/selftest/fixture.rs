//! Helpers of the checks: tensors from reference values, and outputs that show which elements a kernel failed
//! to write, or wrote past the end.

use std::fmt::Display;

use super::{F16_PRODUCT, F32, Failure, Outcome, agree};
use crate::Result;
use crate::gpu::{Blocks, DType, Gpu, Purpose, Tensor};
use crate::reference::blocks::{self, Format};
use crate::reference::compare::compare_with;
use crate::rng;

/// Elements after every output that a kernel must not change. Kernels that work on whole vec4s may fill the
/// output's last vec4.
const GUARD: usize = 8;

/// `n` values in [-size, size), exact in f32 when `size` is a power of two.
pub(super) fn values(seed: u32, n: usize, size: f64) -> Vec<f64> {
    rng::values(seed, n).into_iter().map(|v| f64::from((v * size) as f32)).collect()
}

/// A pseudo-random number below `bound`, from counters.
pub(super) fn below(bound: u32, seed: u32, counter: u32) -> u32 {
    rng::pcg4d([counter, seed, 7, 7])[0] % bound
}

fn narrow(data: &[f64]) -> Vec<f32> {
    data.iter().map(|&v| v as f32).collect()
}

/// An f32 tensor of reference values.
pub(super) fn floats(gpu: &Gpu, data: &[f64]) -> Result<Tensor> {
    Tensor::from_f32(gpu, Purpose::Staging, "selftest input", &narrow(data))
}

/// The rows of `data`, `width` elements each: the first starts at element `at`, each next one `stride`
/// elements later. The elements in between are `fill`.
pub(super) fn spread(data: &[f64], width: usize, (at, stride): (usize, usize), fill: f64) -> Vec<f64> {
    let mut out = vec![fill; at];
    for (i, row) in data.chunks(width).enumerate() {
        out.resize(at + i * stride, fill);
        out.extend(row);
    }
    out
}

/// A u32 tensor.
pub(super) fn words(gpu: &Gpu, data: &[u32]) -> Result<Tensor> {
    Tensor::from_u32(gpu, Purpose::Staging, "selftest table", data)
}

/// `data` rounded to `dtype`: the tensor and its values. For a quantised type the values are generated, and
/// only the length of `data` is used.
pub(super) fn weights(gpu: &Gpu, dtype: DType, data: &[f64]) -> Result<(Tensor, Vec<f64>)> {
    let (bytes, held): (Vec<u8>, Vec<f64>) = match dtype {
        DType::F32 | DType::U32 => return Ok((floats(gpu, data)?, data.to_vec())),
        DType::Bf16 => {
            let held: Vec<half::bf16> = data.iter().map(|&v| half::bf16::from_f64(v)).collect();
            (held.iter().flat_map(|v| v.to_le_bytes()).collect(), held.iter().map(|v| v.to_f64()).collect())
        }
        DType::F16 => {
            let held: Vec<half::f16> = data.iter().map(|&v| half::f16::from_f64(v)).collect();
            (held.iter().flat_map(|v| v.to_le_bytes()).collect(), held.iter().map(|v| v.to_f64()).collect())
        }
        quantised => {
            let seeds = rng::pcg4d([data.len() as u32, quantised as u32, 0, 7]);
            let (blocks, held) = quantised_weights(quantised, data.len(), seeds[0]);
            (blocks.bytes(), held)
        }
    };
    let shape = (data.len(), dtype);
    Ok((Tensor::from_bytes(gpu, Purpose::Staging, "selftest weights", &bytes, shape)?, held))
}

/// Quantised weights with arbitrary codes and scales, and their values by the reference.
fn quantised_weights(dtype: DType, len: usize, seed: u32) -> (Blocks, Vec<f64>) {
    let mut count = 0;
    let blocks = Blocks::made_up(dtype, len, || {
        count += 1;
        rng::pcg4d([count, seed, 3, 5])[0]
    });
    let held = blocks::forward(
        Format::named(&format!("{dtype:?}")),
        [&blocks.codes, &blocks.scales, &blocks.supers],
        len,
    );
    // The host's own decoding of blocks, which loading a model relies on, must agree.
    let read: Vec<f64> = blocks.values().into_iter().map(f64::from).collect();
    assert!(
        read.iter().zip(&held).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()),
        "{dtype:?}: the host decodes the blocks differently from the reference"
    );
    (blocks, held)
}

/// A tensor that a kernel writes, with a guard after it.
pub(super) struct Output {
    /// The tensor to give to the kernel.
    pub tensor: Tensor,
    len: usize,
}

impl Output {
    /// Filled with NaN: an element that the kernel does not write fails the comparison.
    pub fn fresh(gpu: &Gpu, len: usize) -> Result<Self> {
        Self::holding(gpu, &vec![f64::NAN; len])
    }

    /// Filled with known values, for a kernel that adds or works in place.
    pub fn holding(gpu: &Gpu, earlier: &[f64]) -> Result<Self> {
        let mut data = narrow(earlier);
        data.resize(earlier.len() + GUARD, f32::NAN);
        let tensor = Tensor::from_f32(gpu, Purpose::Staging, "selftest output", &data)?;
        Ok(Self { tensor, len: earlier.len() })
    }

    /// Reads the elements. Fails if the guard was changed.
    pub async fn read(&self, gpu: &Gpu, what: impl Display) -> std::result::Result<Vec<f32>, Failure> {
        let mut data = self.tensor.read_f32(gpu).await?;
        if let Some(i) = (self.len.next_multiple_of(4)..data.len()).find(|&i| !data[i].is_nan()) {
            return Err(Failure(format!("{what}: index {i}: written past the end of {} elements", self.len)));
        }
        data.truncate(self.len);
        Ok(data)
    }

    /// Fails unless the elements agree with `expected`. They are sums of products whose inputs were rounded
    /// to f16; `sizes` holds the sums of the products' absolute values.
    pub async fn expect_rounded(
        &self,
        gpu: &Gpu,
        what: impl Display,
        expected: &[f64],
        sizes: &[f64],
    ) -> Outcome {
        let found = self.read(gpu, &what).await?;
        compare_with(&found, expected, |i| F32.abs + F16_PRODUCT * sizes[i], F32.eps)
            .map_err(|message| Failure(format!("{what}: {message}")))
    }

    /// Fails unless the elements agree with `expected`.
    pub async fn expect(&self, gpu: &Gpu, what: impl Display, expected: &[f64]) -> Outcome {
        agree(&what, &self.read(gpu, &what).await?, expected)
    }
}

/// The bits of `data`, where a comparison by value would treat NaN as unequal to itself. WGSL lets a GPU
/// ignore the sign of a zero, and Microsoft's FXC does, so -0 is +0 here.
pub(super) fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|v| if *v == 0.0 { 0 } else { v.to_bits() }).collect()
}
