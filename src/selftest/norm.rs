//! Kernels that reduce over a row or over the rows: RMSNorm and column sums.

use super::bench::{Output, floats, spread, values};
use super::{Check, Depth, Outcome, check};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::rms_norm::{self, Saved, Shape};
use crate::kernels::{Mat, column_sum};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("rms_norm_forward", forward),
        check!("rms_norm_backward", backward),
        check!("rms_norm_many_rows", many_rows),
        check!("column_sum", sums),
    ]
}

/// Rows and width, at and around a workgroup's 64 lanes and a serial block's 8 rows.
const SHAPES: [(usize, usize); 9] =
    [(3, 65), (9, 7), (1, 1), (8, 64), (7, 63), (17, 128), (1, 576), (65, 3), (5, 1031)];
const EPS: f64 = 1e-5;

async fn norm(gpu: &Gpu, rows: usize, width: usize) -> Outcome {
    // A first row close to zero, where eps counts.
    let mut x = values(1, rows * width, 4.0);
    x[..width].iter_mut().for_each(|v| *v /= 1024.0);
    let w = values(2, width, 2.0);
    let (y, rstd) = reference::rms_norm::forward(&x, &w, width, EPS);
    let outputs = [Output::fresh(gpu, y.len())?, Output::fresh(gpu, rows)?];
    let (x, w) = (floats(gpu, &x)?, floats(gpu, &w)?);
    let mut rec = Recorder::new(gpu);
    let [y_out, rstd_out] = outputs.each_ref().map(|output| &output.tensor);
    rms_norm::forward(&mut rec, &x, &w, y_out, rstd_out, Shape { rows, width }, EPS as f32)?;
    rec.submit();
    outputs[0].expect(gpu, format!("y, {rows}x{width}"), &y).await?;
    outputs[1].expect(gpu, format!("rstd, {rows}x{width}"), &rstd).await
}

async fn forward(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&SHAPES) {
        norm(gpu, rows, width).await?;
    }
    Ok(())
}

/// More rows than one dimension of a dispatch has workgroups.
async fn many_rows(gpu: &Gpu, depth: Depth) -> Outcome {
    if depth == Depth::Full { norm(gpu, 65_541, 3).await } else { Ok(()) }
}

async fn backward(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&SHAPES) {
        for (accumulate, train) in [(false, true), (true, true), (true, false)] {
            let shape = Shape { rows, width };
            gradient(gpu, shape, accumulate, train).await?;
        }
    }
    Ok(())
}

async fn gradient(gpu: &Gpu, shape: Shape, accumulate: bool, train: bool) -> Outcome {
    let Shape { rows, width } = shape;
    let what = format!("{rows}x{width} accumulate={accumulate} train={train}");
    let (x, w, dy) = (values(1, rows * width, 2.0), values(2, width, 2.0), values(3, rows * width, 1.0));
    let (earlier_dx, earlier_dw) = (values(4, rows * width, 1.0), values(5, width, 1.0));
    let (_, rstd) = reference::rms_norm::forward(&x, &w, width, EPS);
    let (mut dx, mut dw) = reference::rms_norm::backward(&x, &w, &rstd, &dy, width);
    let dx_out = if accumulate {
        dx = reference::add::forward(&dx, &earlier_dx);
        Output::holding(gpu, &earlier_dx)?
    } else {
        Output::fresh(gpu, dx.len())?
    };
    dw = if train { reference::add::forward(&dw, &earlier_dw) } else { earlier_dw.clone() };
    let dw_out = Output::holding(gpu, &earlier_dw)?;
    let (x, w, rstd, dy) = (floats(gpu, &x)?, floats(gpu, &w)?, floats(gpu, &rstd)?, floats(gpu, &dy)?);
    let mut rec = Recorder::new(gpu);
    let saved = Saved { x: &x, w: &w, rstd: &rstd };
    let trained = train.then_some(&dw_out.tensor);
    rms_norm::backward(&mut rec, saved, &dy, &dx_out.tensor, trained, shape, accumulate)?;
    rec.submit();
    dx_out.expect(gpu, format!("dx, {what}"), &dx).await?;
    dw_out.expect(gpu, format!("dw, {what}"), &dw).await
}

async fn sums(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&SHAPES) {
        let what = format!("{rows}x{width}");
        let (a, b) = (values(1, rows * width, 1.0), values(2, rows * width, 1.0));
        let (s, earlier) = (values(3, rows, 1.0), values(4, width, 1.0));
        let plain = reference::column_sum::forward(&a, None, None, width, Some(&earlier));
        let scaled = reference::column_sum::forward(&a, Some(&b), Some(&s), width, Some(&earlier));
        let (plain_out, scaled_out) = (Output::holding(gpu, &earlier)?, Output::holding(gpu, &earlier)?);
        let among = Mat {
            data: &floats(gpu, &spread(&a, width, (3, width + 2), f64::NAN))?,
            at: 3,
            stride: width + 2,
        };
        let (a, b, s) = (floats(gpu, &a)?, floats(gpu, &b)?, floats(gpu, &s)?);
        let mut rec = Recorder::new(gpu);
        column_sum::plain(&mut rec, among, &plain_out.tensor, rows, width)?;
        column_sum::scaled(&mut rec, &a, &b, &s, &scaled_out.tensor, rows, width)?;
        rec.submit();
        plain_out.expect(gpu, format!("plain, {what}"), &plain).await?;
        scaled_out.expect(gpu, format!("scaled, {what}"), &scaled).await?;
    }
    Ok(())
}
