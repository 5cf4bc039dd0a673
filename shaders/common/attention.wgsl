// Sizes of an attention layer, and the places of its operands, in vec4s: the row of token t starts at `at` +
// t * `stride`, and its heads are `head` apart. Queries, keys and values may be columns of one projection, in
// any order. A gradient has the layout of its operand; o and do are (T, H, HEAD_DIM).
const VECTORS = HEAD_DIM / 4u;
struct Params {
    queries: u32, heads: u32, kv_heads: u32, scale: f32,
    q_at: u32, q_stride: u32, q_head: u32, k_at: u32, v_at: u32, kv_stride: u32, kv_head: u32,
    window: u32, cap: f32, first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;

fn q_of(t: u32, head: u32) -> u32 { return p.q_at + t * p.q_stride + head * p.q_head; }
fn k_of(t: u32, kv_head: u32) -> u32 { return p.k_at + t * p.kv_stride + kv_head * p.kv_head; }
fn v_of(t: u32, kv_head: u32) -> u32 { return p.v_at + t * p.kv_stride + kv_head * p.kv_head; }

// The last `window` keys of a query's two ranges, which follow each other by position (Beltagy et al.,
// "Longformer", 2004.05150).
fn in_window(range: vec4<u32>) -> vec4<u32> {
    let prefix = range.y - range.x;
    let count = prefix + range.w - range.z;
    let hidden = count - min(count, p.window);
    let of_prefix = min(hidden, prefix);
    return vec4<u32>(range.x + of_prefix, range.y, range.z + hidden - of_prefix, range.w);
}
// Whether a key is in a query's window, from their positions. The key must not come after the query.
fn near(query: u32, key: u32) -> bool { return query - key < p.window; }

// CAP: a score s becomes cap * tanh(s / cap) (Gemma 2, 2408.00118). tanh is written so that large scores of
// either sign do not give NaN.
#ifdef CAP
fn capped(score: f32) -> f32 { return p.cap * (1.0 - 2.0 / (exp(2.0 * score / p.cap) + 1.0)); }
fn cap_slope(score: f32) -> f32 { return 1.0 - (score / p.cap) * (score / p.cap); }
#else
fn capped(score: f32) -> f32 { return score; }
fn cap_slope(score: f32) -> f32 { return 1.0; }
#endif
