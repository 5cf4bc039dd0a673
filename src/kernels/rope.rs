//! Rotary position embedding (Su et al., 2104.09864) in Hugging Face's `rotate_half` layout.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["rope"]; tokens: u32, heads: u32, half: u32, sign: f32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the token's angle.
    Forward,
    /// Back: the gradient.
    Backward,
}

/// Turns x `(T, heads, head_dim)` in place by the angles in table `(P, head_dim / 2, 2)` (cos, sin) of each token's position.
/// tokens is `(T, 4)`: id, position, slot, visible_end.
pub fn turn(
    rec: &mut Recorder,
    turn: Turn,
    tokens: &Tensor,
    table: &Tensor,
    x: &Tensor,
    (count, heads, head_dim): (usize, usize, usize),
) -> Result<()> {
    check(
        "rope",
        &[("tokens", tokens, 4 * count), ("table", table, head_dim), ("x", x, count * heads * head_dim)],
    )?;
    let half = head_dim / 2;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let params = Params { tokens: count as u32, heads: heads as u32, half: half as u32, sign };
    let pairs = count * heads * half;
    let shader = kernel(rec.gpu(), "rope");
    rec.dispatch(&shader, &params, &[tokens, table, x], groups_of_64(pairs), 6.0 * pairs as f64);
    Ok(())
}
