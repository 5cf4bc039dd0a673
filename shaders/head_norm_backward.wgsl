// rms_norm_backward.wgsl for head_norm.wgsl: turns the gradients of the norms' outputs for queries and keys,
// in place, into those of the norms' inputs.
// The weights' gradients are column_sum(d_x before this kernel, raw, rstd), one head at a time. Writes: d_x,
// in place.
#import common/rows
struct Params {
    tokens: u32, heads: u32, kv_heads: u32, width: u32, at: u32, stride: u32, eps: f32, shift: f32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<f32>;    // (width)
@group(0) @binding(2) var<storage, read> k_weight: array<f32>;    // (width)
@group(0) @binding(3) var<storage, read> raw: array<f32>;         // (T, H + G, width)
@group(0) @binding(4) var<storage, read> rstd: array<f32>;        // (T, H + G)
// (T, H + G, width), rows from `at` on, `stride` apart
@group(0) @binding(5) var<storage, read_write> d_x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_of(group, groups, lane);
    let heads = p.heads + p.kv_heads;
    if row >= p.tokens * heads { return; }
    let base = p.at + row / heads * p.stride + row % heads * p.width;
    let query = row % heads < p.heads;
    let own = row * p.width;
    var dot = 0.0;
    for (var c = first_of(lane); c < p.width; c += STRIDE) {
        let w = select(k_weight[c], q_weight[c], query) + p.shift;
        dot = fma(raw[own + c] * w, d_x[base + c], dot);
    }
    let r = rstd[row];
    let mean = row_sum(dot, lane) / f32(p.width) * r * r;
    for (var c = first_of(lane); c < p.width; c += STRIDE) {
        let w = select(k_weight[c], q_weight[c], query) + p.shift;
        d_x[base + c] = r * (w * d_x[base + c] - raw[own + c] * mean);
    }
}
