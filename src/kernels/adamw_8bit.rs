//! AdamW with 8-bit moments in blocks (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
//! 2110.02861).

use super::adamw::{Constants, Step};
use super::{check, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["adamw_8bit"];
    vectors: u32, blocks: u32, shrink: f32, beta1: f32, beta2: f32, step: f32, root: f32, eps: f32);

/// Elements that share a scale.
pub const BLOCK: usize = 256;

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Number of 4-byte words for both moments of `count` parameters. All-zero words are moments of 0.
pub fn state_words(count: usize) -> usize {
    2 * count.div_ceil(4) + 2 * count.div_ceil(BLOCK)
}

/// The values of the codes, `(2, 256)`: first those for first moments, then those for second moments, which
/// are never negative. Besides 0 and 1, there are evenly spaced values between a tenth of each power of ten
/// from 1e-6 to 1 and that power; the larger the power, the more values (the paper's dynamic tree, as in
/// bitsandbytes).
pub fn table() -> Vec<f32> {
    let numbers = |signed: bool| {
        let mut all = vec![0.0, 1.0];
        for exponent in 0..7 {
            let count = if signed { 1 << exponent } else { 2 << exponent };
            let scale = 10f64.powi(exponent - 6);
            let middle = |i: i32| scale * (0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(count));
            all.extend((0..count).map(middle));
            if signed {
                all.extend((0..count).map(|i| -middle(i)));
            }
        }
        all.sort_by(f64::total_cmp);
        all
    };
    [true, false].into_iter().flat_map(numbers).map(|number| number as f32).collect()
}

/// The tensors of a step on `(count)` parameters.
pub struct State<'a> {
    /// Parameters, in place.
    pub w: &'a Tensor,
    /// Both moments, in place: [`state_words`] words.
    pub moments: &'a Tensor,
    /// Gradients.
    pub g: &'a Tensor,
    /// The values of [`table`], `(2, 256)`.
    pub table: &'a Tensor,
}

/// One step on `count` elements. Gradients are multiplied by the scale in clip `(2)`: norm, scale.
pub fn step(rec: &mut Recorder, step: Step, clip: &Tensor, state: State, count: usize) -> Result<()> {
    let State { w, moments, g, table } = state;
    let words = state_words(count);
    check(
        "adamw_8bit",
        &[
            ("clip", clip, 2),
            ("g", g, count),
            ("table", table, 512),
            ("w", w, count),
            ("state", moments, words),
        ],
    )?;
    let (vectors, blocks) = (count.div_ceil(4), count.div_ceil(BLOCK));
    let Constants { shrink, beta1, beta2, step, root, eps } = step.constants();
    let params =
        Params { vectors: vectors as u32, blocks: blocks as u32, shrink, beta1, beta2, step, root, eps };
    let shader = kernel(rec.gpu(), "adamw_8bit");
    rec.dispatch(&shader, &params, &[clip, g, table, w, moments], blocks as u64, 60.0 * count as f64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_bitsandbytes_own() {
        // bitsandbytes 0.50.2, functional.create_dynamic_map(True) and (False), which works in f32.
        let table = table();
        let (signed, unsigned) = table.split_at(256);
        assert!(
            [signed, unsigned].iter().all(|t| t.len() == 256 && t.windows(2).all(|pair| pair[0] < pair[1]))
        );
        let near = |found: f32, expected: f32| (found - expected).abs() <= 1e-6 * expected.abs();
        let of_signed = [(0, -0.992_968_74), (100, -0.007_468_75), (126, -5.5e-7), (127, 0.0), (128, 5.5e-7)];
        for (i, expected) in
            of_signed.into_iter().chain([(200, 0.233_593_75), (254, 0.992_968_74), (255, 1.0)])
        {
            assert!(near(signed[i], expected), "signed {i}: {}", signed[i]);
        }
        let of_unsigned =
            [(0, 0.0), (1, 3.25e-7), (100, 0.062_734_38), (127, 0.103_515_63), (200, 0.616_796_85)];
        for (i, expected) in of_unsigned.into_iter().chain([(254, 0.996_484_4), (255, 1.0)]) {
            assert!(near(unsigned[i], expected), "unsigned {i}: {}", unsigned[i]);
        }
    }
}
