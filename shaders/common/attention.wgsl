// Sizes of an attention layer, and where its operands lie, in vec4s: the row of token t starts at `at` + t * `stride`, a head after
// the other in it. Queries, keys and values may be columns of one projection. Gradients lie as what they are gradients of; o and do
// are (T, H, HEAD_DIM).
const VECTORS = HEAD_DIM / 4u;
struct Params {
    queries: u32, heads: u32, kv_heads: u32, scale: f32,
    q_at: u32, q_stride: u32, k_at: u32, v_at: u32, kv_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;

fn q_of(t: u32, head: u32) -> u32 { return p.q_at + t * p.q_stride + head * VECTORS; }
fn k_of(t: u32, kv_head: u32) -> u32 { return p.k_at + t * p.kv_stride + kv_head * VECTORS; }
fn v_of(t: u32, kv_head: u32) -> u32 { return p.v_at + t * p.kv_stride + kv_head * VECTORS; }
