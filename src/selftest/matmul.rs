//! The three product layouts with every weight type, at and around the sizes of blocks and tiles.

use std::collections::BTreeMap;

use super::fixture::{Output, bits, floats, spread, values, weights};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{DType, Gpu, Precision, Recorder, Tensor, Tier};
use crate::kernels::Mat;
use crate::kernels::matmul::{Candidate, Dims, Epilogue, Family, Form, Product};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("matmul_nt", nt),
        check!("matmul_nn", nn),
        check!("matmul_tn", tn),
        check!("matmul_packed_is_exact", packed_is_exact),
        check!("matmul_quantised", quantised),
        check!("matmul_rows_alone", rows_alone),
        check!("matmul_long_sums", long_sums),
    ]
}

/// m, n, k. Blocks are 4 or 16 rows by 8 columns, tiles 64 by 64 by 16; shapes with only multiples of 4 use
/// the wide loads.
const SHAPES: [[usize; 3]; 20] = [
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
    // Rows for more than one subgroup and fewer than two; the last step of k is half full or full.
    [9, 20, 12],
    [11, 72, 40],
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
            let case = Case { form, dtype, dims: Dims { m, n, k }, ..Case::SET };
            case.check(gpu, depth).await?;
            Case { alpha: -0.375, accumulate: true, ..case }.check(gpu, depth).await?;
            if form == Form::Nt {
                Case { alpha: 1.5, bias: true, ..case }.check(gpu, depth).await?;
                Case { residual: true, ..case }.check(gpu, depth).await?;
                Case { decoding: true, alpha: 0.75, residual: true, ..case }.check(gpu, depth).await?;
            }
        }
        // All options at once.
        for (m, n, k) in [(13, 11, 9), (13, 12, 8)] {
            let (dims, more) = (Dims { m, n, k }, form == Form::Nt);
            let all = Case {
                form,
                dtype,
                dims,
                alpha: 0.5,
                accumulate: true,
                bias: more,
                residual: more,
                decoding: false,
            };
            all.check(gpu, depth).await?;
            Case { decoding: more, ..all }.check(gpu, depth).await?;
        }
    }
    Ok(())
}

/// Elements before the first row of x, w and y, and between the rows of each.
const PLACES: [[(usize, usize); 3]; 3] = [[(0, 0); 3], [(8, 8), (16, 8), (4, 12)], [(3, 1), (2, 0), (0, 5)]];

fn mat(data: &Tensor, (at, stride): (usize, usize)) -> Mat<'_> {
    Mat { data, at, stride }
}

/// The candidates to check. With [`Depth::Quick`] a software adapter runs only the one that a run would take:
/// newer drivers compile each for a second.
pub(super) fn chosen(product: &Product, gpu: &Gpu, depth: Depth) -> Vec<Candidate> {
    let mut all = product.candidates(gpu);
    if depth == Depth::Quick && gpu.tier() == Tier::Software {
        all.truncate(1);
    }
    all
}

#[derive(Clone, Copy, Debug)]
struct Case {
    form: Form,
    dtype: DType,
    dims: Dims,
    alpha: f32,
    accumulate: bool,
    bias: bool,
    residual: bool,
    decoding: bool,
}

impl Case {
    const SET: Self = Self {
        form: Form::Nt,
        dtype: DType::F32,
        dims: Dims { m: 1, n: 1, k: 1 },
        alpha: 1.0,
        accumulate: false,
        bias: false,
        residual: false,
        decoding: false,
    };

    fn reference(
        &self,
        alpha: f64,
        (x, w): (&[f64], &[f64]),
        bias: Option<&[f64]>,
        before: Option<&[f64]>,
    ) -> Vec<f64> {
        let Dims { m, n, k } = self.dims;
        let params = reference::matmul::Params { m, n, k, alpha };
        match self.form {
            Form::Nt => reference::matmul::nt(params, x, w, bias, before),
            Form::Nn => reference::matmul::nn(params, x, w, before),
            Form::Tn => reference::matmul::tn(params, x, w, before),
        }
    }

    async fn check(&self, gpu: &Gpu, depth: Depth) -> Outcome {
        let &Self { form, dtype, dims, alpha, .. } = self;
        let Dims { m, n, k } = dims;
        let x = values(1, m * k, 1.0);
        let (_, w) = weights(gpu, dtype, &values(2, n * k, 1.0))?;
        let earlier = self.accumulate.then(|| values(3, m * n, 1.0));
        let bias = self.bias.then(|| values(4, n, 1.0));
        let residual = self.residual.then(|| values(5, m * n, 1.0));
        let before = earlier.as_deref();
        let mut expected = self.reference(f64::from(alpha), (&x, &w), bias.as_deref(), before);
        let [x_sizes, w_sizes] = [&x, &w].map(|data| data.iter().map(|v| v.abs()).collect::<Vec<_>>());
        let sizes = self.reference(f64::from(alpha.abs()), (&x_sizes, &w_sizes), None, None);
        if let Some(residual) = &residual {
            expected = reference::add::forward(&expected, residual);
        }
        let bias = bias.map(|bias| floats(gpu, &bias)).transpose()?;
        let (x_width, w_width) = match form {
            Form::Nt => (k, k),
            Form::Nn => (k, n),
            Form::Tn => (m, n),
        };
        for places in PLACES {
            let [x_place, w_place, y_place] =
                [(x_width, 0), (w_width, 1), (n, 2)].map(|(width, i)| (places[i].0, width + places[i].1));
            let in_y = |data: &[f64], fill| spread(data, n, y_place, fill);
            let x_data = floats(gpu, &spread(&x, x_width, x_place, f64::NAN))?;
            let (w_data, _) = weights(gpu, dtype, &spread(&w, w_width, w_place, f64::NAN))?;
            let residual = residual.as_ref().map(|r| floats(gpu, &in_y(r, f64::NAN))).transpose()?;
            let nan = vec![f64::NAN; m * n];
            let before = in_y(earlier.as_ref().unwrap_or(&nan), 0.5);
            let (expected, sizes) = (in_y(&expected, 0.5), in_y(&sizes, 0.0));
            let product = Product {
                form,
                x: mat(&x_data, x_place),
                w: mat(&w_data, w_place),
                y: mat(&x_data, y_place),
                dims,
                epilogue: Epilogue {
                    alpha,
                    accumulate: self.accumulate,
                    bias: bias.as_ref(),
                    residual: residual.as_ref(),
                    ..Epilogue::SET
                },
                decoding: self.decoding,
            };
            for by in chosen(&product, gpu, depth) {
                let y = Output::holding(gpu, &before)?;
                let mut rec = Recorder::new(gpu);
                Product { y: mat(&y.tensor, y_place), ..product }.record_by(&mut rec, &by)?;
                rec.submit();
                let what = format!("{}, {self:?}, {places:?}", by.variant);
                if by.family.rounds() {
                    y.expect_rounded(gpu, what, &expected, &sizes).await?;
                } else {
                    y.expect(gpu, what, &expected).await?;
                }
            }
        }
        Ok(())
    }
}

/// The bits of a product, for each family of kernels.
type Bits = BTreeMap<Family, Vec<u32>>;

/// The product of `x` with `w`, both given in memory order. Fails unless all candidates of a family give
/// bit-identical results.
async fn product(
    (gpu, depth): (&Gpu, Depth),
    form: Form,
    (dtype, w): (DType, &[f64]),
    x: &[f64],
    dims: Dims,
    decoding: bool,
) -> Result<Bits, super::Failure> {
    let (w, _) = weights(gpu, dtype, w)?;
    let (x, y) = (floats(gpu, x)?, Output::fresh(gpu, dims.m * dims.n)?);
    let product = Product { decoding, ..Product::plain(form, &x, &w, &y.tensor, dims) };
    let mut all = Bits::new();
    for by in chosen(&product, gpu, depth) {
        let mut rec = Recorder::new(gpu);
        product.record_by(&mut rec, &by)?;
        rec.submit();
        let found = bits(&y.read(gpu, format!("{form:?} {dims:?}")).await?);
        let first = all.entry(by.family).or_insert_with(|| found.clone());
        equal(format!("{}, {dims:?}, bits", by.variant), &found, first)?;
    }
    Ok(all)
}

/// Fails unless `found` has the same families as `expected`, and its bits equal those at the start of
/// `expected`.
fn equal_bits(what: &str, found: &Bits, expected: &Bits) -> Outcome {
    equal(what, &found.keys().collect::<Vec<_>>(), &expected.keys().collect::<Vec<_>>())?;
    for (family, found) in found {
        equal(format!("{what}, {family:?}, bits"), found, &expected[family][..found.len()])?;
    }
    Ok(())
}

/// Packed weights give bit-identical results to the same weights in f32.
async fn packed_is_exact(gpu: &Gpu, depth: Depth) -> Outcome {
    for form in [Form::Nt, Form::Nn, Form::Tn] {
        for (m, n, k) in [(20, 12, 36), (20, 24, 40), (7, 13, 19)] {
            let (dims, x) = (Dims { m, n, k }, values(5, m * k, 1.0));
            for dtype in [DType::Bf16, DType::F16] {
                let (_, held) = weights(gpu, dtype, &values(6, n * k, 1.0))?;
                let plain = product((gpu, depth), form, (DType::F32, &held), &x, dims, false).await?;
                let packed = product((gpu, depth), form, (dtype, &held), &x, dims, false).await?;
                equal_bits(&format!("{form:?} {dtype:?} {dims:?}"), &packed, &plain)?;
            }
        }
    }
    Ok(())
}

/// Quantised weights against the reference, and bit for bit against the same weights in f32.
async fn quantised(gpu: &Gpu, depth: Depth) -> Outcome {
    for dtype in DType::QUANTISED {
        // Rows of x, the other dimension of the weights, and the blocks in a row of the weights. Every type
        // needs its own kernels, which are slow to compile, so most types have one shape.
        let shapes = [(20, 24, 1), (7, 13, 2), (1, 5, 1), (9, 64, 3), (33, 68, 1)];
        let all = matches!(dtype, DType::Q4 | DType::Q6K);
        for &(m, other, blocks) in depth.of(if all { &shapes } else { &shapes[..1] }) {
            for form in [Form::Nt, Form::Nn] {
                let row = blocks * dtype.block();
                let (n, k) = if form == Form::Nt { (other, row) } else { (row, other) };
                let (dims, x) = (Dims { m, n, k }, values(5, m * k, 1.0));
                let (w, held) = weights(gpu, dtype, &vec![0.0; n * k])?;
                for decoding in [false, form == Form::Nt] {
                    let plain = product((gpu, depth), form, (DType::F32, &held), &x, dims, decoding).await?;
                    let found =
                        product((gpu, depth), form, (dtype, &vec![0.0; n * k]), &x, dims, decoding).await?;
                    equal_bits(&format!("{form:?} {dtype:?} {dims:?} decoding={decoding}"), &found, &plain)?;
                }
                if !all {
                    continue;
                }
                let case = Case { form, dtype, dims, alpha: 0.75, bias: form == Form::Nt, ..Case::SET };
                let bias = case.bias.then(|| values(4, n, 1.0));
                let params = reference::matmul::Params { m, n, k, alpha: 0.75 };
                let expected = match form {
                    Form::Nt => reference::matmul::nt(params, &x, &held, bias.as_deref(), None),
                    _ => reference::matmul::nn(params, &x, &held, None),
                };
                let sizes = [&x, &held].map(|data| data.iter().map(|v| v.abs()).collect::<Vec<_>>());
                let sizes = match form {
                    Form::Nt => reference::matmul::nt(params, &sizes[0], &sizes[1], None, None),
                    _ => reference::matmul::nn(params, &sizes[0], &sizes[1], None),
                };
                let (x, bias) = (floats(gpu, &x)?, bias.map(|bias| floats(gpu, &bias)).transpose()?);
                let epilogue = Epilogue { alpha: 0.75, bias: bias.as_ref(), ..Epilogue::SET };
                let product = Product { epilogue, ..Product::plain(form, &x, &w, &x, dims) };
                for by in chosen(&product, gpu, depth) {
                    let y = Output::fresh(gpu, m * n)?;
                    let mut rec = Recorder::new(gpu);
                    Product { y: Mat::new(&y.tensor, n), ..product }.record_by(&mut rec, &by)?;
                    rec.submit();
                    let what = format!("{}, {case:?}", by.variant);
                    if by.family.rounds() {
                        y.expect_rounded(gpu, what, &expected, &sizes).await?;
                    } else {
                        y.expect(gpu, what, &expected).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Sums over a vocabulary, as in the head's backward pass, of many small terms and a large one, all of one
/// sign. If they were added sequentially, all would be rounded in the same direction and the check would
/// fail.
async fn long_sums(gpu: &Gpu, _: Depth) -> Outcome {
    if gpu.precision() == Precision::F16 {
        // f16 cannot represent terms this small.
        return Ok(());
    }
    let (m, n, k) = (3, 8, 49_152);
    let term =
        |i: usize| if i.is_multiple_of(k) { 1.0 } else { (1.0 + (i % 7) as f64 / 7.0) / (1.43 * k as f64) };
    let small = |i: usize| 1.0 + (i % 11) as f64 / 100.0;
    for form in [Form::Nn, Form::Tn] {
        // The rows of x; for TN they are its columns.
        let x: Vec<f64> =
            (0..m * k).map(|i| if form == Form::Nn { term(i) } else { term(i / m + i % m * k) }).collect();
        let [x, w] = [x, (0..k * n).map(small).collect()]
            .map(|all| all.iter().map(|&v| f64::from(v as f32)).collect::<Vec<_>>());
        let params = reference::matmul::Params { m, n, k, alpha: 1.0 };
        let expected = match form {
            Form::Nn => reference::matmul::nn(params, &x, &w, None),
            _ => reference::matmul::tn(params, &x, &w, None),
        };
        let (x, w, y) = (floats(gpu, &x)?, floats(gpu, &w)?, Output::fresh(gpu, m * n)?);
        let mut rec = Recorder::new(gpu);
        Product::plain(form, &x, &w, &y.tensor, Dims { m, n, k }).record(&mut rec)?;
        rec.submit();
        y.expect(gpu, format!("{form:?} m={m} n={n} k={k}"), &expected).await?;
    }
    Ok(())
}

/// A row's result, and so a sampled token, does not depend on the number of rows that are computed with it.
async fn rows_alone(gpu: &Gpu, depth: Depth) -> Outcome {
    for (n, k, decoding) in
        [(24, 64, false), (21, 65, false), (24, 64, true), (21, 65, true), (19, 132, true)]
    {
        let (x, w) = (values(7, 70 * k, 1.0), values(8, n * k, 1.0));
        let dims = |m| Dims { m, n, k };
        let many = product((gpu, depth), Form::Nt, (DType::F32, &w), &x, dims(70), decoding).await?;
        for m in [1, 3, 8, 9, 33] {
            let few =
                product((gpu, depth), Form::Nt, (DType::F32, &w), &x[..m * k], dims(m), decoding).await?;
            equal_bits(&format!("{m} of 70 rows, n={n} k={k} decoding={decoding}"), &few, &many)?;
        }
    }
    Ok(())
}
