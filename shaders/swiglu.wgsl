// act = silu(gate) * up (Shazeer, "GLU Variants Improve Transformer", 2002.05202). Writes: act =.
#import common/index
struct Params { vectors: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate: array<vec4<f32>>;       // (T, F)
@group(0) @binding(2) var<storage, read> up: array<vec4<f32>>;         // (T, F)
@group(0) @binding(3) var<storage, read_write> act: array<vec4<f32>>;  // (T, F)

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.vectors { return; }
    let g = gate[i];
    act[i] = g / (1.0 + exp(-g)) * up[i];
}
