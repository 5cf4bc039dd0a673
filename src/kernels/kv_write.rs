//! Writes keys and values into a sampler's cache.

use super::{Heads, check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["kv_write"]; tokens: u32, width: u32, stride: u32, k_at: u32, v_at: u32,
    head_dim: u32, head_stride: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// `cache_k[slot[t], :] = k[t, :]`, and the same for v: k and v `(count, G, head_dim)` are columns of one
/// tensor, the caches `(slots, G, head_dim)`, tokens `(count, 4)`: id, position, slot, visible_end.
pub fn forward(
    rec: &mut Recorder,
    tokens: &Tensor,
    [k, v]: [Heads; 2],
    [cache_k, cache_v]: [&Tensor; 2],
    count: usize,
    (heads, head_dim): (usize, usize),
) -> Result<()> {
    assert_eq!((k.stride, k.head), (v.stride, v.head), "kv_write: keys and values are columns of one tensor");
    let (width, extent) = (heads * head_dim, k.extent(count, heads, head_dim));
    check("kv_write", &[("tokens", tokens, 4 * count), ("k", k.data, extent)])?;
    check(
        "kv_write",
        &[
            ("v", k.data, v.extent(count, heads, head_dim)),
            ("keys", cache_k, width),
            ("values", cache_v, width),
        ],
    )?;
    let shader = kernel(rec.gpu(), "kv_write");
    let params = Params {
        tokens: count as u32,
        width: width as u32,
        stride: k.stride as u32,
        k_at: k.at as u32,
        v_at: v.at as u32,
        head_dim: head_dim as u32,
        head_stride: k.head as u32,
    };
    let bindings = [tokens, k.data, cache_k, cache_v];
    rec.dispatch(&shader, &params, &bindings, groups_of_64(count * width), 2.0 * (count * width) as f64);
    Ok(())
}
