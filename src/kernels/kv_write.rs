//! Puts keys or values into a sampler's cache.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["kv_write"]; tokens: u32, width: u32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// `cache[slot[t], :] = x[t, :]`: x `(count, width)`, cache `(slots, width)`, tokens `(count, 4)`: id, position, slot, visible_end.
pub fn forward(
    rec: &mut Recorder,
    tokens: &Tensor,
    x: &Tensor,
    cache: &Tensor,
    count: usize,
    width: usize,
) -> Result<()> {
    check("kv_write", &[("tokens", tokens, 4 * count), ("x", x, count * width), ("cache", cache, width)])?;
    let shader = kernel(rec.gpu(), "kv_write");
    let params = Params { tokens: count as u32, width: width as u32 };
    rec.dispatch(&shader, &params, &[tokens, x, cache], groups_of_64(count * width), (count * width) as f64);
    Ok(())
}
