//! Rates of single kernels: the arithmetic peak, matrix products, attention.

use serde::Serialize;

use super::{Runs, median, time};
use crate::Result;
use crate::gpu::{Blocks, DType, Gpu, Purpose, Tensor};
use crate::kernels::Heads;
use crate::kernels::attention::{self, Operands, Saved, Shape};
use crate::kernels::fma_peak;
use crate::kernels::matmul::{Dims, Family, Form, Product};
use crate::rng;

/// The adapter's arithmetic peak in f32, as measured.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// Each run's rate, in 1e9 floating-point operations a second.
    pub gflops: Vec<f64>,
}

impl Peak {
    /// The median rate.
    pub fn median(&self) -> f64 {
        median(&self.gflops)
    }
}

/// Invocations and rounds of the kernel that measures the peak: enough to fill any adapter.
const INVOCATIONS: usize = 1 << 16;
const ROUNDS: u32 = 64;

/// Measures the peak: multiplications and additions in registers only.
///
/// # Errors
/// An error that the device reports.
pub async fn peak(gpu: &Gpu, runs: Runs) -> Result<Peak> {
    let out = Tensor::new(gpu, Purpose::Staging, "peak", INVOCATIONS, DType::F32)?;
    let mut operations = 0.0;
    let seconds = time(gpu, runs, |rec| {
        operations = fma_peak::forward(rec, &out, INVOCATIONS, ROUNDS, (0.5, 1.0))?;
        Ok(())
    })
    .await?;
    Ok(Peak { gflops: seconds.iter().map(|s| operations / s * 1e-9).collect() })
}

/// One kernel on one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// The shader's variant, or the name of the measurement.
    pub kernel: String,
    /// The shape, for people to read.
    pub shape: String,
    /// Floating-point operations that the shape needs.
    pub operations: f64,
    /// Seconds of each run.
    pub seconds: Vec<f64>,
    /// The median rate, in 1e9 floating-point operations a second.
    pub gflops: f64,
}

impl Rate {
    fn new(kernel: &str, shape: String, operations: f64, seconds: Vec<f64>) -> Self {
        let gflops = operations / median(&seconds) * 1e-9;
        Self { kernel: kernel.into(), shape, operations, seconds, gflops }
    }
}

/// `count` values in [-1, 1).
fn values(gpu: &Gpu, label: &str, count: usize) -> Result<Tensor> {
    let data: Vec<f32> = rng::values(1, count).into_iter().map(|v| v as f32).collect();
    Tensor::from_f32(gpu, Purpose::Staging, label, &data)
}

fn narrow(gpu: &Gpu, dtype: DType, count: usize) -> Result<Tensor> {
    let data = rng::values(2, count).into_iter().map(|v| v as f32);
    let bytes: Vec<u8> = match dtype {
        DType::F32 | DType::U32 => data.flat_map(f32::to_le_bytes).collect(),
        DType::Bf16 => data.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => data.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
        quantised => {
            let mut words = 0..;
            let mut word = || rng::pcg4d([words.next().unwrap_or(0), 2, 0, 0])[0];
            Blocks::made_up(quantised, count, &mut word).bytes()
        }
    };
    Tensor::from_bytes(gpu, Purpose::Staging, "weights", &bytes, (count, dtype))
}

/// Products of up to this many rows are measured as in sampling: other passes have more rows.
const DECODING: usize = 16;

/// Measures y(m, n) = x · w with sums of length k, in one layout, with weights of `dtype`. Returns a rate,
/// with its kernel's family, for every kernel that can compute the product; the default kernel comes first.
///
/// # Errors
/// An error that the device reports, or tensors over its limits.
pub async fn matmul(
    gpu: &Gpu,
    form: Form,
    dtype: DType,
    dims: Dims,
    runs: Runs,
) -> Result<Vec<(Family, Rate)>> {
    let Dims { m, n, k } = dims;
    let (x, w) = (values(gpu, "x", m * k)?, narrow(gpu, dtype, n * k)?);
    let y = Tensor::new(gpu, Purpose::Staging, "y", m * n, DType::F32)?;
    let operations = 2.0 * (m * n) as f64 * k as f64;
    let mut rates = Vec::new();
    let product = Product { decoding: m <= DECODING, ..Product::plain(form, &x, &w, &y, dims) };
    for by in product.candidates(gpu) {
        let seconds = time(gpu, runs, |rec| product.record_by(rec, &by)).await?;
        let rate = Rate::new(&by.variant, format!("m={m} n={n} k={k}"), operations, seconds);
        rates.push((by.family, rate));
    }
    Ok(rates)
}

/// Measures causal attention over one sequence of `tokens`, forward and backward. The operations count only
/// keys that are visible: two products for the forward pass, five for the backward pass.
///
/// # Errors
/// As [`matmul()`].
pub async fn attention(
    gpu: &Gpu,
    tokens: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    runs: Runs,
) -> Result<[Rate; 2]> {
    let (scale, mean_keys) = (1.0 / (head_dim as f32).sqrt(), tokens.div_ceil(2));
    let (window, cap) = (None, None);
    let shape = Shape {
        queries: tokens,
        keys: tokens,
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
        cap,
        mean_keys,
        dense: true,
    };
    let (q_count, kv_count) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
    let (q, kv) = (values(gpu, "q", q_count)?, values(gpu, "k and v", 2 * kv_count)?);
    let d_o = values(gpu, "d_o", q_count)?;
    let make = |label, count| Tensor::new(gpu, Purpose::Staging, label, count, DType::F32);
    let (o, dq) = (make("o", q_count)?, make("dq", q_count)?);
    let (dkv, stats) = (make("dk and dv", 2 * kv_count)?, make("stats", 2 * tokens * heads)?);
    let ranges: Vec<u32> = (0..tokens as u32).flat_map(|t| [0, 0, 0, t + 1]).collect();
    let described: Vec<u32> = (0..tokens as u32).flat_map(|t| [0, t, t, tokens as u32]).collect();
    let ranges = Tensor::from_u32(gpu, Purpose::Staging, "ranges", &ranges)?;
    let described = Tensor::from_u32(gpu, Purpose::Staging, "tokens", &described)?;
    let what = format!("T={tokens} H={heads} G={kv_heads} head_dim={head_dim}, causal");
    let pairs = (tokens * (tokens + 1) / 2) as f64;
    let products = |n: f64| n * 2.0 * pairs * (heads * head_dim) as f64;
    let kv_width = kv_heads * head_dim;
    let k = Heads::new(&kv, 2 * kv_width, head_dim);
    let operands = Operands { q: Heads::new(&q, heads * head_dim, head_dim), k, v: k.from(kv_width) };
    let forward =
        time(gpu, runs, |rec| attention::forward(rec, operands, &ranges, &o, &stats, shape)).await?;
    let backward = time(gpu, runs, |rec| {
        let saved = Saved { operands, o: &o, stats: &stats, ranges: &ranges, tokens: &described };
        attention::backward(rec, saved, &d_o, &dq, &dkv, shape)
    })
    .await?;
    Ok([
        Rate::new("attention forward", what.clone(), products(2.0), forward),
        Rate::new("attention backward", what, products(5.0), backward),
    ])
}
