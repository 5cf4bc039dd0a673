//! Kernels that reduce over a row or over the rows: norms and column sums.

use super::fixture::{Output, floats, spread, values};
use super::{Check, Depth, Outcome, check};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::rms_norm::{self, Constants, Saved, Shape};
use crate::kernels::{Mat, Out, column_sum, head_norm, layer_norm};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("rms_norm_forward", forward),
        check!("rms_norm_backward", backward),
        check!("rms_norm_many_rows", many_rows),
        check!("layer_norm", layers),
        check!("head_norm", heads),
        check!("column_sum", sums),
    ]
}

/// Rows and width, at and around a workgroup's 64 lanes and a serial block's 8 rows.
const SHAPES: [(usize, usize); 9] =
    [(3, 65), (9, 7), (1, 1), (8, 64), (7, 63), (17, 128), (1, 576), (65, 3), (5, 1031)];
const EPS: f64 = 1e-5;

/// The weights `w` with a shift of 1, as in Gemma.
fn shifted(w: &[f64]) -> Vec<f64> {
    w.iter().map(|w| w + 1.0).collect()
}

async fn norm(gpu: &Gpu, rows: usize, width: usize) -> Outcome {
    // The first row is close to zero, where eps matters.
    let mut x = values(1, rows * width, 4.0);
    x[..width].iter_mut().for_each(|v| *v /= 1024.0);
    let w = values(2, width, 2.0);
    let (y, rstd) = reference::rms_norm::forward(&x, &w, width, EPS);
    let residual = values(3, rows * width, 1.0);
    let added =
        reference::add::forward(&residual, &reference::rms_norm::forward(&x, &shifted(&w), width, EPS).0);
    let outputs = [Output::fresh(gpu, y.len())?, Output::fresh(gpu, rows)?];
    let others = [Output::fresh(gpu, y.len())?, Output::fresh(gpu, rows)?];
    let (x, w, residual) = (floats(gpu, &x)?, floats(gpu, &w)?, floats(gpu, &residual)?);
    let mut rec = Recorder::new(gpu);
    let (shape, eps) = (Shape { rows, width }, EPS as f32);
    let [y_out, rstd_out] = outputs.each_ref().map(|output| &output.tensor);
    rms_norm::forward(&mut rec, &x, &w, Out::to(y_out), rstd_out, shape, Constants { eps, shift: 0.0 })?;
    let [y_out, rstd_out] = others.each_ref().map(|output| &output.tensor);
    let constants = Constants { eps, shift: 1.0 };
    rms_norm::forward(&mut rec, &x, &w, Out::plus(y_out, &residual), rstd_out, shape, constants)?;
    rec.submit();
    others[0].expect(gpu, format!("shifted y + residual, {rows}x{width}"), &added).await?;
    others[1].expect(gpu, format!("rstd beside a residual, {rows}x{width}"), &rstd).await?;
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
        for (accumulate, train, shift) in [(false, true, 0.0), (true, true, 1.0), (true, false, 0.0)] {
            let shape = Shape { rows, width };
            gradient(gpu, shape, accumulate, train, shift).await?;
        }
    }
    Ok(())
}

async fn gradient(gpu: &Gpu, shape: Shape, accumulate: bool, train: bool, shift: f32) -> Outcome {
    let Shape { rows, width } = shape;
    let what = format!("{rows}x{width} accumulate={accumulate} train={train}");
    let (x, w, dy) = (values(1, rows * width, 2.0), values(2, width, 2.0), values(3, rows * width, 1.0));
    let (earlier_dx, earlier_dw) = (values(4, rows * width, 1.0), values(5, width, 1.0));
    let effective = if shift == 1.0 { shifted(&w) } else { w.clone() };
    let (y, rstd) = reference::rms_norm::forward(&x, &effective, width, EPS);
    let (mut dx, mut dw) = reference::rms_norm::backward(&x, &effective, &rstd, &dy, width);
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
    let again = if accumulate { Some(Output::fresh(gpu, y.len())?) } else { None };
    let y_again = again.as_ref().map(|output| &output.tensor);
    let saved = Saved { x: &x, w: &w, rstd: &rstd, shift, again: y_again };
    let trained = train.then_some(&dw_out.tensor);
    rms_norm::backward(&mut rec, saved, &dy, &dx_out.tensor, trained, shape, accumulate)?;
    rec.submit();
    if let Some(again) = again {
        again.expect(gpu, format!("y again, {what}"), &y).await?;
    }
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
        let [a, b] = [&a, &b].map(|tensor| Mat::new(tensor, width));
        column_sum::scaled(&mut rec, a, b, Mat::new(&s, 1), &scaled_out.tensor, (rows, width))?;
        rec.submit();
        plain_out.expect(gpu, format!("plain, {what}"), &plain).await?;
        scaled_out.expect(gpu, format!("scaled, {what}"), &scaled).await?;
    }
    Ok(())
}

async fn layers(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width) in depth.of(&SHAPES) {
        for accumulate in [false, true] {
            let what = format!("{rows}x{width} accumulate={accumulate}");
            let (x, dy) = (values(1, rows * width, 4.0), values(2, rows * width, 1.0));
            let (w, b) = (values(3, width, 2.0), values(4, width, 2.0));
            let earlier = [rows * width, width, width].map(|count| values(5, count, 1.0));
            let (y, stats) = reference::layer_norm::forward(&x, &w, &b, width, EPS);
            let found = [Output::fresh(gpu, y.len())?, Output::fresh(gpu, stats.len())?];
            let [dx, dw, db] = reference::layer_norm::backward(&x, &w, &stats, &dy, width);
            let dx_out =
                if accumulate { Output::holding(gpu, &earlier[0])? } else { Output::fresh(gpu, dx.len())? };
            let dx = if accumulate { reference::add::forward(&dx, &earlier[0]) } else { dx };
            let (dw_out, db_out) = (Output::holding(gpu, &earlier[1])?, Output::holding(gpu, &earlier[2])?);
            let shape = Shape { rows, width };
            let stats_there = floats(gpu, &stats)?;
            let [x, dy, w, b] = [&x, &dy, &w, &b].map(|v| floats(gpu, v));
            let (x, dy, w, b) = (x?, dy?, w?, b?);
            let mut rec = Recorder::new(gpu);
            let [y_out, stats_out] = found.each_ref().map(|output| &output.tensor);
            layer_norm::forward(&mut rec, &x, (&w, &b), y_out, stats_out, shape, EPS as f32)?;
            let again = if accumulate { Some(Output::fresh(gpu, rows * width)?) } else { None };
            let y_again = again.as_ref().map(|output| (&output.tensor, &b));
            let saved = layer_norm::Saved { x: &x, w: &w, stats: &stats_there, again: y_again };
            let trained = (Some(&dw_out.tensor), Some(&db_out.tensor));
            layer_norm::backward(&mut rec, saved, &dy, &dx_out.tensor, trained, shape, accumulate)?;
            rec.submit();
            found[0].expect(gpu, format!("y, {what}"), &y).await?;
            found[1].expect(gpu, format!("rstd and mean, {what}"), &stats).await?;
            if let Some(again) = again {
                again.expect(gpu, format!("y again, {what}"), &y).await?;
            }
            dx_out.expect(gpu, format!("dx, {what}"), &dx).await?;
            dw_out.expect(gpu, format!("dw, {what}"), &reference::add::forward(&dw, &earlier[1])).await?;
            db_out.expect(gpu, format!("db, {what}"), &reference::add::forward(&db, &earlier[2])).await?;
        }
    }
    Ok(())
}

/// Tokens, query heads, key heads, elements of a head.
const HEADS: [(usize, usize, usize, usize); 5] =
    [(3, 2, 1, 65), (1, 1, 1, 4), (9, 3, 3, 16), (5, 4, 2, 128), (2, 1, 1, 256)];

async fn heads(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(tokens, heads, kv_heads, head_dim) in depth.of(&HEADS) {
        let what = format!("T={tokens} H={heads} G={kv_heads} head_dim={head_dim}");
        let (both, all) = ([heads, kv_heads], (heads + kv_heads) * head_dim);
        let (x, dy) = (values(1, tokens * all, 4.0), values(2, tokens * all, 1.0));
        let (q, k) = (values(3, head_dim, 2.0), values(4, head_dim, 2.0));
        let earlier = [values(5, head_dim, 1.0), values(6, head_dim, 1.0)];
        let weights = [shifted(&q), shifted(&k)];
        let weights = [weights[0].as_slice(), weights[1].as_slice()];
        let (y, rstd) = reference::head_norm::forward(&x, weights, both, head_dim, EPS);
        let (dx, dw) = reference::head_norm::backward(&x, weights, &rstd, &dy, both, head_dim);
        // x is among other columns, which must not change.
        let place = (3, all + 5);
        let among = |x: &[f64]| spread(x, all, place, 0.5);
        let (x_out, dx_out) = (Output::holding(gpu, &among(&x))?, Output::holding(gpu, &among(&dy))?);
        let (raw, rstd_out) = (Output::fresh(gpu, x.len())?, Output::fresh(gpu, rstd.len())?);
        let [dq, dk] = [Output::holding(gpu, &earlier[0])?, Output::holding(gpu, &earlier[1])?];
        let (q, k) = (floats(gpu, &q)?, floats(gpu, &k)?);
        let shape = head_norm::Shape { tokens, heads, kv_heads, head_dim };
        let constants = Constants { eps: EPS as f32, shift: 1.0 };
        let mat = |data| Mat { data, at: place.0, stride: place.1 };
        let mut rec = Recorder::new(gpu);
        let kept = (&raw.tensor, &rstd_out.tensor);
        head_norm::forward(&mut rec, [&q, &k], mat(&x_out.tensor), kept, shape, constants)?;
        let trained = [Some(&dq.tensor), Some(&dk.tensor)];
        head_norm::backward(&mut rec, [&q, &k], kept, mat(&dx_out.tensor), trained, shape, constants)?;
        rec.submit();
        x_out.expect(gpu, format!("y, {what}"), &among(&y)).await?;
        raw.expect(gpu, format!("raw, {what}"), &x).await?;
        rstd_out.expect(gpu, format!("rstd, {what}"), &rstd).await?;
        dx_out.expect(gpu, format!("dx, {what}"), &among(&dx)).await?;
        dq.expect(gpu, format!("dq weight, {what}"), &reference::add::forward(&dw[0], &earlier[0])).await?;
        dk.expect(gpu, format!("dk weight, {what}"), &reference::add::forward(&dw[1], &earlier[1])).await?;
    }
    Ok(())
}
