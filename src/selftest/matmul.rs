//! The three products, in every weight type, at and around the sizes of blocks and tiles.

use super::bench::{Output, bits, floats, values, weights};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{DType, Gpu, Recorder};
use crate::kernels::matmul::{self, Dims, Epilogue, Form};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("matmul_nt", nt),
        check!("matmul_nn", nn),
        check!("matmul_tn", tn),
        check!("matmul_packed_is_exact", packed_is_exact),
        check!("matmul_rows_alone", rows_alone),
    ]
}

/// m, n, k. Blocks are 4 or 16 rows by 8 columns, tiles 64 by 64 by 16; all multiples of 4 take the wide loads.
const SHAPES: [[usize; 3]; 18] = [
    [17, 31, 3],
    [20, 12, 8],
    [65, 67, 63],
    [1, 1, 1],
    [3, 4, 7],
    [4, 8, 4],
    [8, 4, 67],
    [7, 15, 16],
    [15, 7, 17],
    [16, 16, 16],
    [31, 63, 64],
    [64, 64, 64],
    [1, 65, 64],
    [63, 1, 65],
    [5, 20, 12],
    [36, 68, 20],
    [68, 12, 36],
    [130, 132, 68],
];

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

async fn nt(gpu: &Gpu, depth: Depth) -> Outcome {
    all(gpu, depth, Form::Nt).await
}

async fn nn(gpu: &Gpu, depth: Depth) -> Outcome {
    all(gpu, depth, Form::Nn).await
}

async fn tn(gpu: &Gpu, depth: Depth) -> Outcome {
    all(gpu, depth, Form::Tn).await
}

async fn all(gpu: &Gpu, depth: Depth, form: Form) -> Outcome {
    for dtype in DTYPES {
        for &[m, n, k] in depth.of(&SHAPES) {
            let dims = Dims { m, n, k };
            one(gpu, form, dtype, dims, 1.0, false, false).await?;
            one(gpu, form, dtype, dims, -0.375, true, false).await?;
            if form == Form::Nt {
                one(gpu, form, dtype, dims, 1.5, false, true).await?;
            }
        }
        // Everything at once.
        one(gpu, form, dtype, Dims { m: 13, n: 11, k: 9 }, 0.5, true, form == Form::Nt).await?;
    }
    Ok(())
}

async fn one(
    gpu: &Gpu,
    form: Form,
    dtype: DType,
    dims: Dims,
    alpha: f32,
    accumulate: bool,
    bias: bool,
) -> Outcome {
    let Dims { m, n, k } = dims;
    let x = values(1, m * k, 1.0);
    let (w_tensor, w) = weights(gpu, dtype, &values(2, n * k, 1.0))?;
    let earlier = accumulate.then(|| values(3, m * n, 1.0));
    let bias = bias.then(|| values(4, n, 1.0));
    let x_tensor = floats(gpu, &x)?;
    let bias_tensor = bias.as_ref().map(|bias| floats(gpu, bias)).transpose()?;
    let epilogue = Epilogue { alpha, accumulate, bias: bias_tensor.as_ref() };
    let params = reference::matmul::Params { m, n, k, alpha: f64::from(alpha) };
    let (bias, earlier) = (bias.as_deref(), earlier.as_deref());
    let expected = match form {
        Form::Nt => reference::matmul::nt(params, &x, &w, bias, earlier),
        Form::Nn => reference::matmul::nn(params, &x, &w, earlier),
        Form::Tn => reference::matmul::tn(params, &x, &w, earlier),
    };
    let accumulate = if accumulate { " accumulate" } else { "" };
    let what = format!("m={m} n={n} k={k} alpha={alpha}{accumulate}");
    for by in matmul::candidates(gpu, form, dtype, dims, bias.is_some()) {
        let y = match earlier {
            Some(earlier) => Output::holding(gpu, earlier)?,
            None => Output::fresh(gpu, m * n)?,
        };
        let mut rec = Recorder::new(gpu);
        matmul::forward_by(&mut rec, &by, &x_tensor, &w_tensor, &y.tensor, dims, epilogue)?;
        rec.submit();
        y.expect(gpu, format!("{}, {what}", by.variant), &expected).await?;
    }
    Ok(())
}

/// The product of `x` with `w`, whose values are given as they are in memory: the same bits by every candidate.
async fn product(
    gpu: &Gpu,
    form: Form,
    (dtype, w): (DType, &[f64]),
    x: &[f64],
    dims: Dims,
) -> Result<Vec<u32>, super::Failure> {
    let (w, _) = weights(gpu, dtype, w)?;
    let (x, y) = (floats(gpu, x)?, Output::fresh(gpu, dims.m * dims.n)?);
    let mut first: Option<Vec<u32>> = None;
    for by in matmul::candidates(gpu, form, dtype, dims, false) {
        let mut rec = Recorder::new(gpu);
        matmul::forward_by(&mut rec, &by, &x, &w, &y.tensor, dims, Epilogue::SET)?;
        rec.submit();
        let found = bits(&y.read(gpu, format!("{form:?} {dims:?}")).await?);
        equal(format!("{}, {dims:?}, bits", by.variant), &found, first.as_ref().unwrap_or(&found))?;
        first = Some(found);
    }
    Ok(first.unwrap_or_default())
}

/// Packed weights give the very bits that the same weights give in f32.
async fn packed_is_exact(gpu: &Gpu, _: Depth) -> Outcome {
    for form in [Form::Nt, Form::Nn, Form::Tn] {
        for (m, n, k) in [(20, 12, 36), (7, 13, 19)] {
            let (dims, x) = (Dims { m, n, k }, values(5, m * k, 1.0));
            for dtype in [DType::Bf16, DType::F16] {
                let (_, held) = weights(gpu, dtype, &values(6, n * k, 1.0))?;
                let plain = product(gpu, form, (DType::F32, &held), &x, dims).await?;
                let packed = product(gpu, form, (dtype, &held), &x, dims).await?;
                equal(format!("{form:?} {dtype:?} {dims:?}, bits"), &packed, &plain)?;
            }
        }
    }
    Ok(())
}

/// A row's result does not depend on how many rows are computed with it, so neither do sampled tokens.
async fn rows_alone(gpu: &Gpu, _: Depth) -> Outcome {
    for (n, k) in [(24, 64), (21, 65)] {
        let (x, w) = (values(7, 70 * k, 1.0), values(8, n * k, 1.0));
        let dims = |m| Dims { m, n, k };
        let many = product(gpu, Form::Nt, (DType::F32, &w), &x, dims(70)).await?;
        for m in [1, 3, 8, 9, 33] {
            let few = product(gpu, Form::Nt, (DType::F32, &w), &x[..m * k], dims(m)).await?;
            equal(format!("{m} of 70 rows, n={n} k={k}, bits"), &few, &many[..m * n])?;
        }
    }
    Ok(())
}
