//! Rotary position embedding (Su et al., 2104.09864) in Hugging Face's `rotate_half` layout.

use super::{Heads, check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["rope"]; tokens: u32, heads: u32, half: u32, sign: f32, at: u32, stride: u32,
    head_stride: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// The direction of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the token's angle.
    Forward,
    /// By minus the angle: for the gradient.
    Backward,
}

/// Rotates the first `dim` elements of each head of x `(T, heads, ..)`, in place, by the angles in the row of
/// table `(P, dim / 2, 2)` (cos, sin) for each token's position. tokens is `(T, 4)`: id, position, slot,
/// visible_end.
pub fn turn(
    rec: &mut Recorder,
    turn: Turn,
    tokens: &Tensor,
    table: &Tensor,
    x: Heads,
    (count, heads, dim): (usize, usize, usize),
) -> Result<()> {
    let extent = x.extent(count, heads, dim);
    check("rope", &[("tokens", tokens, 4 * count), ("table", table, dim), ("x", x.data, extent)])?;
    let half = dim / 2;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let params = Params {
        tokens: count as u32,
        heads: heads as u32,
        half: half as u32,
        sign,
        at: x.at as u32,
        stride: x.stride as u32,
        head_stride: x.head as u32,
    };
    let pairs = count * heads * half;
    let shader = kernel(rec.gpu(), "rope");
    rec.dispatch(&shader, &params, &[tokens, table, x.data], groups_of_64(pairs), 6.0 * pairs as f64);
    Ok(())
}
