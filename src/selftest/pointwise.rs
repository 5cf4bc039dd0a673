//! Kernels that treat every element, or every pair, by itself.

use super::bench::{Output, below, bits, floats, spread, values, words};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::rope::{self, Turn};
use crate::kernels::{Mat, ema, fma_peak, swiglu};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("ema", average),
        check!("swiglu", gate),
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

async fn gate(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, inner) in depth.of(&[(7, 12), (1, 4), (65, 8), (3, 260), (13, 64)]) {
        let count = rows * inner;
        let mut gate = values(1, count, 8.0);
        // Where exp overflows, and where it vanishes.
        gate.iter_mut().zip([-100.0, 100.0, 0.0]).for_each(|(gate, extreme)| *gate = extreme);
        let (up, dact) = (values(2, count, 2.0), values(3, count, 1.0));
        let act = reference::swiglu::forward(&gate, &up);
        let (dgate, dup) = reference::swiglu::backward(&gate, &up, &dact);
        // A token's gate and up are neighbours.
        let beside = |a: &[f64], b: &[f64]| -> Vec<f64> {
            a.chunks(inner).zip(b.chunks(inner)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let (act_out, dx_out) = (Output::fresh(gpu, count)?, Output::fresh(gpu, 2 * count)?);
        let (x, dact) = (floats(gpu, &beside(&gate, &up))?, floats(gpu, &dact)?);
        let shape = swiglu::Shape { rows, inner };
        let mut rec = Recorder::new(gpu);
        swiglu::forward(&mut rec, &x, &act_out.tensor, shape)?;
        swiglu::backward(&mut rec, &x, &dact, &dx_out.tensor, shape)?;
        rec.submit();
        act_out.expect(gpu, format!("act, {rows}x{inner}"), &act).await?;
        dx_out.expect(gpu, format!("dgate and dup, {rows}x{inner}"), &beside(&dgate, &dup)).await?;
    }
    Ok(())
}

/// What the mask makes of `x`, in f32 as on the device: the same bits.
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

/// More workgroups than one dimension of a dispatch holds.
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
    for &(tokens, heads, head_dim) in
        depth.of(&[(7, 3, 8), (1, 1, 2), (13, 2, 64), (5, 9, 6), (65, 1, 16), (3, 4, 128)])
    {
        let what = format!("tokens={tokens} heads={heads} head_dim={head_dim}");
        let table = reference::rope::table(40, &reference::rope::inv_freq(head_dim, 10_000.0));
        let positions: Vec<u32> = (0..tokens as u32).map(|t| below(40, 9, t)).collect();
        let x = values(1, tokens * heads * head_dim, 2.0);
        let words_of = |&position: &u32| [u32::MAX, position, u32::MAX, u32::MAX];
        let described: Vec<u32> = positions.iter().flat_map(words_of).collect();
        // Among other columns, which stay as they are.
        let (width, place) = (heads * head_dim, (5, heads * head_dim + 3));
        let among = |x: &[f64]| spread(x, width, place, 0.5);
        let (there, back) = (Output::holding(gpu, &among(&x))?, Output::holding(gpu, &among(&x))?);
        let in_rows = |data| Mat { data, at: place.0, stride: place.1 };
        let (described, angles) = (words(gpu, &described)?, floats(gpu, &table)?);
        let shape = (tokens, heads, head_dim);
        let mut rec = Recorder::new(gpu);
        rope::turn(&mut rec, Turn::Forward, &described, &angles, in_rows(&there.tensor), shape)?;
        rope::turn(&mut rec, Turn::Backward, &described, &angles, in_rows(&back.tensor), shape)?;
        rec.submit();
        let forward = reference::rope::forward(&x, &table, &positions, head_dim, 1.0);
        there.expect(gpu, format!("forward, {what}"), &among(&forward)).await?;
        let backward = reference::rope::backward(&x, &table, &positions, head_dim);
        back.expect(gpu, format!("backward, {what}"), &among(&backward)).await?;
    }
    Ok(())
}
