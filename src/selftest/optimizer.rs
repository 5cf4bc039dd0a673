//! The gradient norm, its clipping, and AdamW over several steps.

use super::fixture::{Output, floats, values};
use super::{Check, Depth, F32, Failure, Outcome, check};
use crate::gpu::{Gpu, Purpose, Recorder, Tensor};
use crate::kernels::adamw::{self, State, Step};
use crate::kernels::adamw_8bit::{self, state_words, table};
use crate::kernels::sum_squares::{self, PARTIALS};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("sum_squares", norm),
        check!("clip_scale", norm_of_none),
        check!("adamw", steps),
        check!("adamw_8bit", steps_in_8_bits),
    ]
}

/// The norm over all gradients together, and the clip scale for a limit below the norm, above it and without
/// a limit. If there is only one gradient, its elements are about as small as the 1e-6 that keeps the scale
/// finite.
async fn norm(gpu: &Gpu, depth: Depth) -> Outcome {
    let arenas: [&[usize]; 5] = [&[1025, 3], &[1], &[5, 1024, 4099], &[1023], &[64, 1, 1, 7]];
    for &counts in depth.of(&arenas) {
        let size = if counts.len() == 1 { 1.0 / 1_048_576.0 } else { 2.0 };
        let gradients: Vec<Vec<f64>> =
            counts.iter().zip(1..).map(|(&count, seed)| values(seed, count, size)).collect();
        let partials = Output::fresh(gpu, counts.len() * PARTIALS)?;
        let mut rec = Recorder::new(gpu);
        for (index, gradient) in gradients.iter().enumerate() {
            sum_squares::forward(&mut rec, &floats(gpu, gradient)?, &partials.tensor, index, gradient.len())?;
        }
        let all: f64 = gradients.iter().map(|gradient| reference::sum_squares::forward(gradient)).sum();
        let mut results = Vec::new();
        for max_norm in [0.0, 1e-7, 1.0, 1e6] {
            let result = Output::fresh(gpu, 2)?;
            sum_squares::clip_scale(&mut rec, &partials.tensor, &result.tensor, counts.len(), max_norm)?;
            results.push((max_norm, result));
        }
        rec.submit();
        for (max_norm, result) in results {
            let scale = reference::sum_squares::clip_scale(all, f64::from(max_norm));
            result
                .expect(gpu, format!("norm and scale, {counts:?} max_norm={max_norm}"), &[all.sqrt(), scale])
                .await?;
        }
    }
    Ok(())
}

/// A gradient with one element that is NaN, infinite or so large that its square overflows, at different
/// places: the scale must skip the step.
async fn norm_of_none(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(count, at) in depth.of(&[(1025, 1024), (1, 0), (4099, 1500)]) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let mut gradient: Vec<f32> = values(1, count, 2.0).into_iter().map(|g| g as f32).collect();
            gradient[at] = bad;
            let gradient = Tensor::from_f32(gpu, Purpose::Gradients, "g", &gradient)?;
            let partials = Output::fresh(gpu, PARTIALS)?;
            for max_norm in [0.0, 1.0] {
                let result = Output::fresh(gpu, 2)?;
                let mut rec = Recorder::new(gpu);
                sum_squares::forward(&mut rec, &gradient, &partials.tensor, 0, count)?;
                sum_squares::clip_scale(&mut rec, &partials.tensor, &result.tensor, 1, max_norm)?;
                rec.submit();
                let found = result.tensor.slice(1, 1).read_f32(gpu).await?[0];
                if found != -1.0 {
                    let what = format!("scale of {count} with {bad} at {at}, max_norm={max_norm}");
                    return Err(Failure(format!("{what}: expected -1, found {found}")));
                }
            }
        }
    }
    Ok(())
}

async fn steps(gpu: &Gpu, depth: Depth) -> Outcome {
    for &count in depth.of(&[257, 3, 1, 4, 5, 1031]) {
        for (lr, weight_decay, scale) in [(1e-2, 0.0, 1.0), (3e-3, 0.1, 0.25), (1e-2, 0.1, -1.0)] {
            let what = format!("count={count} lr={lr} decay={weight_decay} scale={scale}");
            let (mut w, mut m, mut v) = (values(1, count, 1.0), vec![0.0; count], vec![0.0; count]);
            let outputs = [Output::holding(gpu, &w)?, Output::holding(gpu, &m)?, Output::holding(gpu, &v)?];
            let [w_out, m_out, v_out] = outputs.each_ref().map(|output| &output.tensor);
            let clip = floats(gpu, &[f64::NAN, scale])?;
            let mut rec = Recorder::new(gpu);
            for t in 1..=5 {
                let g = values(10 + t, count, 4.0);
                let params = reference::adamw::Params {
                    lr,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay,
                    step: t,
                    scale,
                };
                reference::adamw::step(params, &mut w, &g, &mut m, &mut v);
                let step = Step { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, t: u64::from(t) };
                let state = State { w: w_out, m: m_out, v: v_out, g: &floats(gpu, &g)? };
                adamw::step(&mut rec, step, &clip, state, count)?;
            }
            rec.submit();
            for (name, output, expected) in
                [("w", &outputs[0], &w), ("m", &outputs[1], &m), ("v", &outputs[2], &v)]
            {
                output.expect(gpu, format!("{name} after 5 steps, {what}"), expected).await?;
            }
        }
    }
    Ok(())
}

/// Every step starts from the codes of the previous step. The parameters must be those of AdamW on the
/// decoded moments, and the new codes must be the nearest ones.
async fn steps_in_8_bits(gpu: &Gpu, depth: Depth) -> Outcome {
    let numbers = table();
    let on_device = Tensor::from_f32(gpu, Purpose::Moments, "table", &numbers)?;
    for &count in depth.of(&[257, 3, 1, 4, 255, 256, 513, 1031]) {
        let words = state_words(count);
        let moments = Tensor::from_u32(gpu, Purpose::Moments, "moments", &vec![0; words])?;
        let mut w = values(1, count, 1.0);
        for t in 1..=5 {
            let what = format!("count={count} step {t}");
            // The size of the gradient differs by a factor of up to a million between neighbouring elements.
            let size = |(i, g): (usize, f64)| g * 10f64.powi(-((i % 7) as i32));
            let g: Vec<f64> = values(10 + t, count, 4.0).into_iter().enumerate().map(size).collect();
            let g: Vec<f64> = g.into_iter().map(|g| f64::from(g as f32)).collect();
            let [mut m, mut v] =
                reference::adamw_8bit::moments(&moments.read_u32(gpu).await?, &numbers, count);
            // The third step is skipped.
            let scale = if t == 3 { -1.0 } else { 0.5 };
            let clip = floats(gpu, &[f64::NAN, scale])?;
            let output = Output::holding(gpu, &w)?;
            let step =
                Step { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, t: u64::from(t) };
            let mut rec = Recorder::new(gpu);
            let state = adamw_8bit::State {
                w: &output.tensor,
                moments: &moments,
                g: &floats(gpu, &g)?,
                table: &on_device,
            };
            adamw_8bit::step(&mut rec, step, &clip, state, count)?;
            rec.submit();
            let Step { lr, beta1, beta2, eps, weight_decay, .. } = step;
            let params = reference::adamw::Params { lr, beta1, beta2, eps, weight_decay, step: t, scale };
            reference::adamw::step(params, &mut w, &g, &mut m, &mut v);
            output.expect(gpu, format!("w, {what}"), &w).await?;
            w = output.tensor.slice(0, count).read_f32(gpu).await?.into_iter().map(f64::from).collect();
            let found = reference::adamw_8bit::moments(&moments.read_u32(gpu).await?, &numbers, count);
            for (which, (found, expected)) in found.iter().zip([&m, &v]).enumerate() {
                let slack = reference::adamw_8bit::rounding(expected, &numbers[256 * which..][..256]);
                for (i, ((found, expected), slack)) in found.iter().zip(expected).zip(slack).enumerate() {
                    let off = (found - expected).abs();
                    if off.is_nan() || off > slack * (1.0 + 1e-3) + F32.eps * expected.abs() + 1e-30 {
                        let name = ["m", "v"][which];
                        return Err(Failure(format!(
                            "{name}, {what}: index {i}: expected {expected:e} within {slack:e}, found \
                             {found:e}"
                        )));
                    }
                }
            }
        }
    }
    Ok(())
}
