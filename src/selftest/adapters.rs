//! Low-rank adapters beside a matrix product: added by its own kernel or as products of their own, and their
//! gradients together or one by one.

use super::fixture::{Output, floats, spread, values, weights};
use super::matmul::chosen;
use super::{Check, Depth, Outcome, check};
use crate::gpu::{DType, Gpu, Precision, Recorder};
use crate::kernels::Mat;
use crate::kernels::matmul::{AdapterPart, Adapters, Dims, Epilogue, Form, Product, TERMS};
use crate::reference::matmul as reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("adapters_forward", added),
        check!("adapters_backward", gradients),
        check!("adapters_long", long),
    ]
}

/// A layer's width of the output, and the first column, the number of columns and the rank of each adapter:
/// whole quads, with columns between that have no adapter; queries, keys and values; one adapter; odd sizes;
/// more ranks than a product's kernel adds.
const LAYERS: [(usize, &[[usize; 3]]); 8] = [
    (104, &[[0, 64, 8], [64, 20, 8], [88, 12, 4]]),
    (112, &[[0, 64, 8], [64, 24, 8], [88, 24, 8]]),
    (68, &[[4, 60, 16]]),
    (132, &[[0, 64, 4], [64, 68, 12]]),
    (37, &[[0, 20, 3], [23, 11, 5]]),
    (72, &[[0, 36, 32], [36, 36, 16]]),
    (72, &[[0, 36, 52], [36, 36, 16]]),
    (136, &[[0, 68, 68], [68, 68, 4]]),
];

/// Elements before the first matrix.
const BEFORE: usize = 64;

/// A layer's adapters, with made-up factors, and the sizes of their inner activations and of all matrices.
fn adapters(parts: &[[usize; 3]]) -> (Vec<AdapterPart>, usize, usize) {
    let (mut first_rank, mut at) = (0, BEFORE);
    let mut place = |(i, &[first, columns, rank]): (usize, &[usize; 3])| {
        let part = AdapterPart { first, columns, first_rank, rank, at, scale: 0.5 + i as f32 };
        first_rank += rank;
        at += columns * rank;
        part
    };
    let placed = parts.iter().enumerate().map(&mut place).collect();
    (placed, first_rank, at)
}

/// The columns of `part` of y `(rows, width)`, given as whole rows.
fn columns(y: &[f64], width: usize, first: usize, count: usize) -> Vec<f64> {
    y.chunks(width).flat_map(|row| row[first..first + count].to_vec()).collect()
}

/// Adds `part` `(rows, count)` to the columns from `first` on.
fn add(y: &mut [f64], width: usize, first: usize, count: usize, part: &[f64]) {
    for (row, part) in y.chunks_mut(width).zip(part.chunks(count)) {
        row[first..first + count].iter_mut().zip(part).for_each(|(y, part)| *y += part);
    }
}

fn sizes(data: &[f64]) -> Vec<f64> {
    data.iter().map(|value| value.abs()).collect()
}

async fn added(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(width, parts) in depth.of(&LAYERS) {
        for rows in [5, 67] {
            for dtype in [DType::F32, DType::Bf16] {
                forward((gpu, depth), (rows, width), parts, dtype).await?;
                let rank = parts.iter().map(|part| part[2]).sum();
                backward((gpu, depth), (rows, width), rank, dtype).await?;
            }
        }
    }
    Ok(())
}

/// y = x Wᵀ + bias + residual, + scale · low Bᵀ in the columns of each adapter.
async fn forward(
    (gpu, depth): (&Gpu, Depth),
    (m, n): (usize, usize),
    parts: &[[usize; 3]],
    dtype: DType,
) -> Outcome {
    let k = 20;
    let (placed, ranks, count) = adapters(parts);
    let (x, low) = (values(1, m * k, 1.0), values(2, m * ranks, 1.0));
    let (w_data, w) = weights(gpu, dtype, &values(3, n * k, 1.0))?;
    let (bias, residual) = (values(4, n, 1.0), values(5, m * n, 1.0));
    let matrices = values(6, count, 1.0);
    let all = |x: &[f64], w: &[f64], low: &[f64], matrices: &[f64], bias: &[f64], residual: &[f64]| {
        let params = reference::Params { m, n, k, alpha: 1.0 };
        let mut y = reference::nt(params, x, w, Some(bias), Some(residual));
        for part in &placed {
            let &AdapterPart { first, columns: count, first_rank, rank, at, scale } = part;
            let params = reference::Params { m, n: count, k: rank, alpha: f64::from(scale) };
            let low = columns(low, ranks, first_rank, rank);
            let own = reference::nt(params, &low, &matrices[at..at + count * rank], None, None);
            add(&mut y, n, first, count, &own);
        }
        y
    };
    let expected = all(&x, &w, &low, &matrices, &bias, &residual);
    let slack =
        all(&sizes(&x), &sizes(&w), &sizes(&low), &sizes(&matrices), &sizes(&bias), &sizes(&residual));
    let [x, low, bias, residual, matrices] = [&x, &low, &bias, &residual, &matrices].map(|v| floats(gpu, v));
    let (x, low, bias, residual, matrices) = (x?, low?, bias?, residual?, matrices?);
    let adapters = Adapters { low: Mat::new(&low, ranks), matrices: &matrices, parts: &placed };
    let epilogue =
        Epilogue { bias: Some(&bias), residual: Some(&residual), adapters: Some(adapters), ..Epilogue::SET };
    for decoding in [false, true] {
        let product =
            Product { epilogue, decoding, ..Product::plain(Form::Nt, &x, &w_data, &x, Dims { m, n, k }) };
        let what = format!("NT {dtype:?} {m}x{n} {parts:?} decoding={decoding}");
        compare((gpu, depth), product, what, &expected, &slack).await?;
    }
    Ok(())
}

/// dx = dy W, + dlow A.
async fn backward((gpu, depth): (&Gpu, Depth), (m, k): (usize, usize), rank: usize, dtype: DType) -> Outcome {
    // One more column than whole quads in a layer of odd size.
    let n = if k.is_multiple_of(4) { 68 } else { 69 };
    let (dy, dlow) = (values(1, m * k, 0.125), values(2, m * rank, 1.0));
    let (w_data, w) = weights(gpu, dtype, &values(3, n * k, 0.125))?;
    let a = values(4, BEFORE + rank * n, 1.0);
    let all = |dy: &[f64], w: &[f64], dlow: &[f64], a: &[f64]| {
        let base = reference::nn(reference::Params { m, n, k, alpha: 1.0 }, dy, w, None);
        reference::nn(reference::Params { m, n, k: rank, alpha: 1.0 }, dlow, &a[BEFORE..], Some(&base))
    };
    let expected = all(&dy, &w, &dlow, &a);
    let slack = all(&sizes(&dy), &sizes(&w), &sizes(&dlow), &sizes(&a));
    let [dy, dlow, a] = [&dy, &dlow, &a].map(|v| floats(gpu, v));
    let (dy, dlow, a) = (dy?, dlow?, a?);
    let whole = AdapterPart { first: 0, columns: n, first_rank: 0, rank, at: BEFORE, scale: 1.0 };
    let adapters = Adapters { low: Mat::new(&dlow, rank), matrices: &a, parts: &[whole] };
    for accumulate in [false, true] {
        let epilogue = Epilogue { adapters: Some(adapters), accumulate, ..Epilogue::SET };
        let product = Product { epilogue, ..Product::plain(Form::Nn, &dy, &w_data, &dy, Dims { m, n, k }) };
        let what = format!("NN {dtype:?} {m}x{n} rank {rank} accumulate={accumulate}");
        compare((gpu, depth), product, what, &expected, &slack).await?;
    }
    Ok(())
}

/// A sum that [`Product::record`] computes in parts, to which the adapters are added once.
async fn long(gpu: &Gpu, depth: Depth) -> Outcome {
    backward((gpu, depth), (5, TERMS + 4), 4, DType::F32).await
}

/// Compares the product by each of its candidates, and as it is recorded; y has no gaps, and 1 before.
async fn compare(
    (gpu, depth): (&Gpu, Depth),
    product: Product<'_>,
    what: String,
    expected: &[f64],
    slack: &[f64],
) -> Outcome {
    let Dims { m, n, .. } = product.dims;
    let before = if product.epilogue.accumulate { 1.0 } else { 0.0 };
    let expected: Vec<f64> = expected.iter().map(|value| value + before).collect();
    for by in chosen(&product, gpu, depth).into_iter().map(Some).chain([None]) {
        let y = match product.epilogue.accumulate {
            true => Output::holding(gpu, &vec![1.0; m * n])?,
            false => Output::fresh(gpu, m * n)?,
        };
        let mut rec = Recorder::new(gpu);
        let product = Product { y: Mat::new(&y.tensor, n), ..product };
        let what = match &by {
            Some(by) => product.record_by(&mut rec, by).map(|()| format!("{}, {what}", by.variant))?,
            None => product.record(&mut rec).map(|()| format!("as recorded, {what}"))?,
        };
        rec.submit();
        // Adapters that are products of their own may be rounded although the kernel of `by` does not round.
        if gpu.precision() == Precision::F16 {
            y.expect_rounded(gpu, what, &expected, slack).await?;
        } else {
            y.expect(gpu, what, &expected).await?;
        }
    }
    Ok(())
}

/// dlow = scale · dy B, and dB += scale · dyᵀ low, where dy has other columns before and after.
async fn gradients(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(width, parts) in depth.of(&LAYERS) {
        for rows in [1, 5, 67] {
            let (placed, ranks, count) = adapters(parts);
            let (dy, low) = (values(1, rows * width, 1.0), values(2, rows * ranks, 1.0));
            let (b, earlier) = (values(3, count, 1.0), values(4, count, 1.0));
            let mut dlow = vec![0.0; rows * ranks];
            let mut db = earlier.clone();
            let (mut dlow_sizes, mut db_sizes) = (dlow.clone(), sizes(&earlier));
            for &AdapterPart { first, columns: n, first_rank, rank, at, scale } in &placed {
                let own = at..at + n * rank;
                let (dy, low) = (columns(&dy, width, first, n), columns(&low, ranks, first_rank, rank));
                let down = reference::Params { m: rows, n: rank, k: n, alpha: f64::from(scale) };
                let up = reference::Params { m: n, n: rank, k: rows, alpha: f64::from(scale) };
                add(&mut dlow, ranks, first_rank, rank, &reference::nn(down, &dy, &b[own.clone()], None));
                let sum = reference::tn(up, &dy, &low, Some(&earlier[own.clone()]));
                db[own.clone()].copy_from_slice(&sum);
                let (dy, low, b) = (sizes(&dy), sizes(&low), sizes(&b[own.clone()]));
                add(&mut dlow_sizes, ranks, first_rank, rank, &reference::nn(down, &dy, &b, None));
                let sum = reference::tn(up, &dy, &low, Some(&sizes(&earlier[own.clone()])));
                db_sizes[own].copy_from_slice(&sum);
            }
            let place = (4, width + 8);
            let (b, low) = (floats(gpu, &b)?, floats(gpu, &low)?);
            let dy = floats(gpu, &spread(&dy, width, place, f64::NAN))?;
            let dy = Mat { data: &dy, at: place.0, stride: place.1 };
            let (dlow_out, db_out) = (Output::fresh(gpu, rows * ranks)?, Output::holding(gpu, &earlier)?);
            let of = |low, matrices| Adapters { low: Mat::new(low, ranks), matrices, parts: &placed };
            let mut rec = Recorder::new(gpu);
            of(&dlow_out.tensor, &b).backward_low(&mut rec, dy, rows)?;
            of(&low, &db_out.tensor).backward_matrices(&mut rec, dy, rows)?;
            rec.submit();
            let what = format!("{rows}x{width} {parts:?}");
            let (low_what, b_what) = (format!("dlow, {what}"), format!("dB, {what}"));
            if gpu.precision() == Precision::F16 {
                dlow_out.expect_rounded(gpu, low_what, &dlow, &dlow_sizes).await?;
                db_out.expect_rounded(gpu, b_what, &db, &db_sizes).await?;
            } else {
                dlow_out.expect(gpu, low_what, &dlow).await?;
                db_out.expect(gpu, b_what, &db).await?;
            }
        }
    }
    Ok(())
}
