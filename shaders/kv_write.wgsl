// cache[slot[t], :] = x[t, :]. Writes: the tokens' rows of cache.
#import common/index
struct Params { tokens: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<vec4<u32>>;  // (T): id, position, slot, visible_end
@group(0) @binding(2) var<storage, read> x: array<f32>;             // (T, width)
@group(0) @binding(3) var<storage, read_write> cache: array<f32>;   // (S, width)

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.tokens * p.width { return; }
    cache[tokens[i / p.width].z * p.width + i % p.width] = x[i];
}
