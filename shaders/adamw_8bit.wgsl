// AdamW as in adamw.wgsl, with 8-bit moments: a moment is its code's table entry times the largest absolute
// value in its block of 256 (Dettmers et al., 2110.02861, with the block size of current bitsandbytes). One
// workgroup per block. Writes: w and state, in place; g is not changed.
const WORKGROUP = 64u;
#import common/index
#import common/reduce
struct Params {
    vectors: u32, blocks: u32, shrink: f32, beta1: f32, beta2: f32, step: f32, root: f32, eps: f32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> clip: array<f32>;           // (2): norm, scale
@group(0) @binding(2) var<storage, read> g: array<vec4<f32>>;        // (vectors)
@group(0) @binding(3) var<storage, read> table: array<f32>;          // (2, 256): for m and for v, ascending
@group(0) @binding(4) var<storage, read_write> w: array<vec4<f32>>;  // (vectors)
// (vectors) codes of m, (vectors) codes of v, (blocks, 2) scales of m and v
@group(0) @binding(5) var<storage, read_write> state: array<u32>;

fn decode(word: u32, first: u32) -> vec4<f32> {
    let codes = (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    return vec4<f32>(table[first + codes.x], table[first + codes.y], table[first + codes.z],
        table[first + codes.w]);
}

// The code of the nearest number in the table.
fn nearest(value: f32, first: u32) -> u32 {
    var low = 0u;
    for (var half = 128u; half > 0u; half = half / 2u) {
        if table[first + low + half] <= value { low += half; }
    }
    let high = min(low + 1u, 255u);
    return select(low, high, table[first + high] - value < value - table[first + low]);
}

fn encode(values: vec4<f32>, scale: f32, first: u32) -> u32 {
    let v = values * select(1.0 / scale, 0.0, scale == 0.0);
    return nearest(v.x, first) | (nearest(v.y, first) << 8u) | (nearest(v.z, first) << 16u)
        | (nearest(v.w, first) << 24u);
}

fn largest(v: vec4<f32>) -> f32 {
    let size = abs(v);
    return max(max(size.x, size.y), max(size.z, size.w));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = flat_group(group, groups);
    if block >= p.blocks { return; }
    let i = block * WORKGROUP + lane;
    // The last block may be short: its surplus invocations repeat the last vector's work and write nothing.
    let inside = i < p.vectors;
    let at = min(i, p.vectors - 1u);
    let scales = 2u * (p.vectors + block);
    let gradient = g[at] * clip[1];
    let old_first = decode(state[at], 0u) * bitcast<f32>(state[scales]);
    let old_second = decode(state[p.vectors + at], 256u) * bitcast<f32>(state[scales + 1u]);
    let first = p.beta1 * old_first + (1.0 - p.beta1) * gradient;
    let second = p.beta2 * old_second + (1.0 - p.beta2) * gradient * gradient;
    let first_scale = workgroup_max(largest(first), lane);
    let second_scale = workgroup_max(largest(second), lane);
    if !inside || clip[1] < 0.0 { return; }
    w[i] = w[i] * p.shrink - p.step * first / (sqrt(second) / p.root + p.eps);
    state[i] = encode(first, first_scale, 0u);
    state[p.vectors + i] = encode(second, second_scale, 256u);
    if lane == 0u {
        state[scales] = bitcast<u32>(first_scale);
        state[scales + 1u] = bitcast<u32>(second_scale);
    }
}
