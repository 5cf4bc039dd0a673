// Rotary positions in HF's rotate_half layout (Su et al., "RoFormer", 2104.09864): the pair (x[j], x[j +
// half]) of a head is rotated by position * inv_freq[j]; elements after both halves are not changed (partial
// rotary embedding). sign = -1 rotates back, for the backward pass. Writes: x, in place.
// The angles' cosines and sines come from a table made on the host: GPU sines are only required to be
// accurate to 2^-11.
#import common/index
struct Params {
    tokens: u32, heads: u32, half: u32, sign: f32, at: u32, stride: u32, head_stride: u32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;  // (T): id, position, slot, visible_end
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>;   // (P, half): cos, sin
// (T, heads, ..), rows from `at` on, `stride` apart, heads `head_stride`
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.tokens * p.heads * p.half { return; }
    let j = i % p.half;
    let head = i / p.half;
    let t = head / p.heads;
    let turn = table[tokens[t].y * p.half + j];
    let low = p.at + t * p.stride + (head % p.heads) * p.head_stride + j;
    let high = low + p.half;
    let a = x[low];
    let b = x[high];
    let s = turn.y * p.sign;
    x[low] = a * turn.x - b * s;
    x[high] = b * turn.x + a * s;
}
