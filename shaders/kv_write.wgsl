// k[slot[t], :] = x[t, k_at..], v[slot[t], :] = x[t, v_at..], `width` elements each, in heads that lie
// `head_stride` apart in x. Writes: the tokens' rows of k and v.
#import common/index
struct Params {
    tokens: u32, width: u32, stride: u32, k_at: u32, v_at: u32, head_dim: u32, head_stride: u32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;  // (T): id, position, slot, visible_end
@group(0) @binding(2) var<storage, read> x: array<f32>;             // (T, stride)
@group(0) @binding(3) var<storage, read_write> k: array<f32>;       // (S, width)
@group(0) @binding(4) var<storage, read_write> v: array<f32>;       // (S, width)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.tokens * p.width { return; }
    let t = i / p.width;
    let c = i % p.width;
    let at = tokens[t].z * p.width + c;
    let source = t * p.stride + c / p.head_dim * p.head_stride + c % p.head_dim;
    k[at] = x[source + p.k_at];
    v[at] = x[source + p.v_at];
}
