//! Kernels that treat every element, or every pair, by itself.

use super::bench::{Output, below, bits, floats, values, words};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{Gpu, Recorder};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::rope::{self, Turn};
use crate::kernels::{add, ema, fma_peak, swiglu};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("add", sum),
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

async fn sum(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&COUNTS) {
        let (a, b, out) = (values(1, count, 2.0), values(2, count, 2.0), Output::fresh(gpu, count)?);
        let mut rec = Recorder::new(gpu);
        add::forward(&mut rec, &floats(gpu, &a)?, &floats(gpu, &b)?, &out.tensor, count)?;
        rec.submit();
        out.expect(gpu, format!("count {count}"), &reference::add::forward(&a, &b)).await?;
    }
    Ok(())
}

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
    for &count in depth.of(&COUNTS) {
        let mut gate = values(1, count, 8.0);
        // Where exp overflows, and where it vanishes.
        gate.iter_mut().zip([-100.0, 100.0, 0.0]).for_each(|(gate, extreme)| *gate = extreme);
        let (up, dact) = (values(2, count, 2.0), values(3, count, 1.0));
        let act = reference::swiglu::forward(&gate, &up);
        let (dgate, dup) = reference::swiglu::backward(&gate, &up, &dact);
        let outputs = [Output::fresh(gpu, count)?, Output::fresh(gpu, count)?, Output::fresh(gpu, count)?];
        let (gate, up, dact) = (floats(gpu, &gate)?, floats(gpu, &up)?, floats(gpu, &dact)?);
        let [act_out, dgate_out, dup_out] = outputs.each_ref().map(|output| &output.tensor);
        let mut rec = Recorder::new(gpu);
        swiglu::forward(&mut rec, &gate, &up, act_out, count)?;
        swiglu::backward(&mut rec, &gate, &up, &dact, dgate_out, dup_out, count)?;
        rec.submit();
        for (name, output, expected) in
            [("act", &outputs[0], act), ("dgate", &outputs[1], dgate), ("dup", &outputs[2], dup)]
        {
            output.expect(gpu, format!("{name}, count {count}"), &expected).await?;
        }
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
        let (there, back) = (Output::holding(gpu, &x)?, Output::holding(gpu, &x)?);
        let (described, angles) = (words(gpu, &described)?, floats(gpu, &table)?);
        let shape = (tokens, heads, head_dim);
        let mut rec = Recorder::new(gpu);
        rope::turn(&mut rec, Turn::Forward, &described, &angles, &there.tensor, shape)?;
        rope::turn(&mut rec, Turn::Backward, &described, &angles, &back.tensor, shape)?;
        rec.submit();
        let forward = reference::rope::forward(&x, &table, &positions, head_dim, 1.0);
        there.expect(gpu, format!("forward, {what}"), &forward).await?;
        let backward = reference::rope::backward(&x, &table, &positions, head_dim);
        back.expect(gpu, format!("backward, {what}"), &backward).await?;
    }
    Ok(())
}
