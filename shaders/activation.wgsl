// act = f(x), or with GATED f(gate) * up (Shazeer, "GLU Variants Improve Transformer", 2002.05202). Writes:
// act =.
#import common/activation
#import common/index
struct Params { rows: u32, vectors: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;          // (T, F); GATED: (T, 2, F): gate, up
@group(0) @binding(2) var<storage, read_write> act: array<vec4<f32>>;  // (T, F)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows * p.vectors { return; }
#ifdef GATED
    let gate = i + i / p.vectors * p.vectors;
    act[i] = activate(x[gate]) * x[gate + p.vectors];
#else
    act[i] = activate(x[i]);
#endif
}
