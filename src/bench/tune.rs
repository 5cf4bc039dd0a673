//! Times every kernel that could compute a model's matrix products, and keeps the fastest.

use super::{Runs, matmul, median};
use crate::Result;
use crate::gpu::{Choice, DType, Gpu, Tuning};
use crate::kernels::matmul::{Dims, Form, TERMS, TOKEN_CLASSES, class};
use crate::model::DecoderConfig;

/// A product to measure.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The product's layout.
    pub form: Form,
    /// The weights' type.
    pub dtype: DType,
    /// The product's sizes.
    pub dims: Dims,
}

/// The most rows of the output head's products: the head works on chunks, never on a whole batch at once.
const HEAD_ROWS: usize = 128;

/// The products of a model whose weights are stored as `dtype`, at each number of tokens that tuning
/// distinguishes: the linear layers' forward passes, their gradients for the input, and for full fine-tuning
/// (in f32) those for the weight.
pub fn products(config: &DecoderConfig, dtype: DType) -> Vec<Product> {
    let mut shapes: Vec<(usize, usize)> = config
        .tensors()
        .iter()
        .filter_map(|(_, shape)| <[usize; 2]>::try_from(shape.as_slice()).ok())
        .map(|[n, k]| (n, k))
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    let mut all = Vec::new();
    for (n, k) in shapes {
        for tokens in TOKEN_CLASSES.into_iter().filter(|&tokens| n < config.vocab || tokens <= HEAD_ROWS) {
            all.push(Product { form: Form::Nt, dtype, dims: Dims { m: tokens, n, k } });
            // Decoding has no backward pass.
            if tokens >= HEAD_ROWS {
                all.push(Product { form: Form::Nn, dtype, dims: Dims { m: tokens, n: k, k: n.min(TERMS) } });
                if dtype == DType::F32 {
                    all.push(Product { form: Form::Tn, dtype, dims: Dims { m: n, n: k, k: tokens } });
                }
            }
        }
    }
    all
}

/// How many times faster than the default kernel (the guess) another kernel must be to replace it.
const WORTH: f64 = 1.05;

/// Measures `products`. After each product, `each` gets its class and the choice.
///
/// # Errors
/// An error that the device reports or `each` returns.
pub async fn tune(
    gpu: &Gpu,
    products: &[Product],
    runs: Runs,
    mut each: impl FnMut(&str, &Choice) -> Result<()>,
) -> Result<Tuning> {
    let mut tuning = Tuning::new(gpu.summary());
    for &Product { form, dtype, dims } in products {
        let rates = matmul(gpu, form, dtype, dims, runs).await?;
        let seconds = rates.iter().map(|(_, rate)| (rate.kernel.clone(), median(&rate.seconds))).collect();
        // Only kernels of the guess's family are candidates: their results equal the guess's.
        let guessed = rates.first().map(|(family, _)| *family);
        let rates: Vec<_> = rates.into_iter().filter(|(f, _)| Some(*f) == guessed).map(|(_, r)| r).collect();
        let best = rates.iter().max_by(|a, b| a.gflops.total_cmp(&b.gflops));
        // Measurements are noisy: a change has to be worth it.
        let best = best.filter(|best| best.gflops >= WORTH * rates[0].gflops).or(rates.first());
        let name = |rate: Option<&super::Rate>| rate.map(|rate| rate.kernel.clone()).unwrap_or_default();
        let operations = rates.first().map_or(0.0, |rate| rate.operations);
        let choice = Choice { variant: name(best), guess: name(rates.first()), operations, seconds };
        let class = class(form, dtype, dims, gpu.precision());
        each(&class, &choice)?;
        tuning.choices.insert(class, choice);
    }
    Ok(tuning)
}
