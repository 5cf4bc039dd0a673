//! Kernels that compute every element, or every pair of elements, independently.

use super::fixture::{Output, below, bits, floats, spread, values, words};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::activation::{self, Function};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::rope::{self, Turn};
use crate::kernels::{Heads, ema, fma_peak, soft_cap};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("ema", average),
        check!("activation", activate),
        check!("soft_cap", cap),
        check!("dropout", mask),
        check!("dropout_many_groups", many_groups),
        check!("rope", turn),
        check!("fma_peak", chains),
    ]
}

/// Element counts at and around a vec4, a workgroup, and a workgroup of vec4s.
const COUNTS: [usize; 9] = [257, 3, 1, 4, 5, 64, 65, 256, 1031];

async fn average(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&COUNTS) {
        let (value, earlier) = (values(1, count, 2.0), values(2, count, 2.0));
        let out = Output::holding(gpu, &earlier)?;
        let mut rec = Recorder::new(gpu);
        ema::update(&mut rec, &floats(gpu, &value)?, &out.tensor, count, 0.96875)?;
        rec.submit();
        out.expect(gpu, format!("count {count}"), &reference::ema::forward(&earlier, &value, 0.96875))
            .await?;
    }
    Ok(())
}

async fn activate(gpu: &Gpu, depth: Depth) -> Outcome {
    use reference::activation::Function as Expected;
    for (function, expected) in [
        (Function::Silu, Expected::Silu),
        (Function::Gelu, Expected::Gelu),
        (Function::GeluTanh, Expected::GeluTanh),
    ] {
        for &(rows, inner) in depth.of(&[(7, 12), (1, 4), (65, 8), (3, 260), (13, 64)]) {
            let what = format!("{function:?} {rows}x{inner}");
            let count = rows * inner;
            let mut gate = values(1, count, 8.0);
            // Values where exp overflows, and where it is 0.
            gate.iter_mut().zip([-100.0, 100.0, 0.0]).for_each(|(gate, extreme)| *gate = extreme);
            let (up, dact) = (values(2, count, 2.0), values(3, count, 1.0));
            let act = reference::activation::forward(expected, &gate, Some(&up));
            let (dgate, dup) = reference::activation::backward(expected, &gate, Some(&up), &dact);
            let plain = reference::activation::forward(expected, &gate, None);
            let (dplain, _) = reference::activation::backward(expected, &gate, None, &dact);
            // A token's gate and up are stored next to each other.
            let beside = |a: &[f64], b: &[f64]| -> Vec<f64> {
                a.chunks(inner).zip(b.chunks(inner)).flat_map(|(a, b)| [a, b].concat()).collect()
            };
            let (act_out, dx_out) = (Output::fresh(gpu, count)?, Output::fresh(gpu, 2 * count)?);
            let (plain_out, dplain_out) = (Output::fresh(gpu, count)?, Output::fresh(gpu, count)?);
            let again = [Output::fresh(gpu, count)?, Output::fresh(gpu, count)?];
            let [act_again, plain_again] = again.each_ref().map(|output| &output.tensor);
            let (x, alone) = (floats(gpu, &beside(&gate, &up))?, floats(gpu, &gate)?);
            let dact = floats(gpu, &dact)?;
            let shape = activation::Shape { rows, inner, function, gated: true };
            let mut rec = Recorder::new(gpu);
            activation::forward(&mut rec, &x, &act_out.tensor, shape)?;
            activation::backward(&mut rec, &x, &dact, &dx_out.tensor, act_again, shape)?;
            let shape = activation::Shape { gated: false, ..shape };
            activation::forward(&mut rec, &alone, &plain_out.tensor, shape)?;
            activation::backward(&mut rec, &alone, &dact, &dplain_out.tensor, plain_again, shape)?;
            rec.submit();
            act_out.expect(gpu, format!("gated act, {what}"), &act).await?;
            dx_out.expect(gpu, format!("dgate and dup, {what}"), &beside(&dgate, &dup)).await?;
            plain_out.expect(gpu, format!("act, {what}"), &plain).await?;
            dplain_out.expect(gpu, format!("dx, {what}"), &dplain).await?;
            again[0].expect(gpu, format!("gated act again, {what}"), &act).await?;
            again[1].expect(gpu, format!("act again, {what}"), &plain).await?;
        }
    }
    Ok(())
}

async fn cap(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&COUNTS) {
        let mut x = values(1, count, 64.0);
        // Far beyond the cap, where exp overflows or is 0.
        x.iter_mut().zip([-1e4, 1e4, 0.0]).for_each(|(x, extreme)| *x = extreme);
        let out = Output::holding(gpu, &x)?;
        let mut rec = Recorder::new(gpu);
        soft_cap::forward(&mut rec, &out.tensor, count, 30.0)?;
        rec.submit();
        out.expect(gpu, format!("count {count}"), &reference::soft_cap::forward(&x, 30.0)).await?;
    }
    Ok(())
}

/// `x` with the mask applied, in f32 as on the device, so that the result is bit-identical.
fn masked(mask: Mask, x: &[f64]) -> Vec<f32> {
    let Mask { p, stream, step, seed } = mask;
    let params = reference::dropout::Params { p, stream, step, seed };
    let kept = reference::dropout::forward(params, &vec![1.0; x.len()]);
    let scale = 1.0 / (1.0 - p);
    kept.iter().zip(x).map(|(&kept, &x)| if kept > 0.0 { x as f32 * scale } else { 0.0 }).collect()
}

async fn mask(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&COUNTS) {
        for (p, seed) in [(0.1, 1), (0.5, u32::MAX), (0.0, 3)] {
            let mask = Mask { p, stream: 17, step: 5, seed };
            let what = format!("count {count} p={p} seed={seed}");
            let (x, dy, earlier) = (values(1, count, 1.0), values(2, count, 1.0), values(3, count, 1.0));
            let (y, dx) = (Output::fresh(gpu, count)?, Output::holding(gpu, &earlier)?);
            let mut rec = Recorder::new(gpu);
            dropout::forward(&mut rec, mask, &floats(gpu, &x)?, &y.tensor, count)?;
            dropout::backward(&mut rec, mask, &floats(gpu, &dy)?, &dx.tensor, count)?;
            rec.submit();
            let found = y.read(gpu, format!("y, {what}")).await?;
            equal(format!("y, {what}, bits"), &bits(&found), &bits(&masked(mask, &x)))?;
            let params = reference::dropout::Params { p, stream: 17, step: 5, seed };
            let expected = reference::add::forward(&earlier, &reference::dropout::backward(params, &dy));
            dx.expect(gpu, format!("dx, {what}"), &expected).await?;
        }
    }
    Ok(())
}

async fn chains(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&[65, 1, 64, 257]) {
        for rounds in [0, 1, 7] {
            let out = Output::fresh(gpu, count)?;
            let mut rec = Recorder::new(gpu);
            fma_peak::forward(&mut rec, &out.tensor, count, rounds, (0.75, 0.5))?;
            rec.submit();
            let expected = vec![reference::fma_peak::forward(rounds, 0.75, 0.5); count];
            out.expect(gpu, format!("count {count} rounds {rounds}"), &expected).await?;
        }
    }
    Ok(())
}

/// More workgroups than fit in one dimension of a dispatch.
async fn many_groups(gpu: &Gpu, depth: Depth) -> Outcome {
    if depth == Depth::Quick {
        return Ok(());
    }
    let count = 65_535 * 64 + 77;
    let (x, y) = (vec![1.0; count], Output::fresh(gpu, count)?);
    let mask = Mask { p: 0.25, stream: 0, step: 1, seed: 2 };
    let mut rec = Recorder::new(gpu);
    dropout::forward(&mut rec, mask, &floats(gpu, &x)?, &y.tensor, count)?;
    rec.submit();
    let found = y.read(gpu, "many groups").await?;
    equal("many groups, bits", &bits(&found), &bits(&masked(mask, &x)))
}

async fn turn(gpu: &Gpu, depth: Depth) -> Outcome {
    // Tokens, heads, elements of a head, and how many of them are rotated.
    for &(tokens, heads, head_dim, dim) in depth.of(&[
        (7, 3, 8, 8),
        (4, 2, 16, 4),
        (1, 1, 2, 2),
        (13, 2, 64, 64),
        (5, 9, 6, 6),
        (65, 1, 16, 16),
        (3, 4, 128, 96),
    ]) {
        let what = format!("tokens={tokens} heads={heads} head_dim={head_dim} dim={dim}");
        let table = reference::rope::table(40, &reference::rope::inv_freq(dim, 10_000.0));
        let positions: Vec<u32> = (0..tokens as u32).map(|t| below(40, 9, t)).collect();
        let x = values(1, tokens * heads * head_dim, 2.0);
        let words_of = |&position: &u32| [u32::MAX, position, u32::MAX, u32::MAX];
        let described: Vec<u32> = positions.iter().flat_map(words_of).collect();
        // Heads with gaps between them, among other columns, which must not change.
        let apart = head_dim + 2;
        let (width, place) = (heads * apart, (5, heads * apart + 3));
        let among = |x: &[f64]| {
            let mut heads = spread(x, head_dim, (0, apart), 0.25);
            heads.resize(tokens * width, 0.25);
            spread(&heads, width, place, 0.5)
        };
        let (there, back) = (Output::holding(gpu, &among(&x))?, Output::holding(gpu, &among(&x))?);
        let in_rows = |data| Heads { data, at: place.0, stride: place.1, head: apart };
        let (described, angles) = (words(gpu, &described)?, floats(gpu, &table)?);
        let shape = (tokens, heads, dim);
        let mut rec = Recorder::new(gpu);
        rope::turn(&mut rec, Turn::Forward, &described, &angles, in_rows(&there.tensor), shape)?;
        rope::turn(&mut rec, Turn::Backward, &described, &angles, in_rows(&back.tensor), shape)?;
        rec.submit();
        let forward = reference::rope::forward(&x, &table, &positions, (head_dim, dim), 1.0);
        there.expect(gpu, format!("forward, {what}"), &among(&forward)).await?;
        let backward = reference::rope::backward(&x, &table, &positions, (head_dim, dim));
        back.expect(gpu, format!("backward, {what}"), &among(&backward)).await?;
    }
    Ok(())
}
