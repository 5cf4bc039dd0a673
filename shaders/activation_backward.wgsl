// d_x = dact * f'(x); with GATED dup = dact * f(gate), dgate = dact * up * f'(gate). act is computed again,
// as in activation.wgsl. Writes: all =.
#import common/activation
#import common/index
struct Params { rows: u32, vectors: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // (T, F); GATED: (T, 2, F): gate, up
@group(0) @binding(2) var<storage, read> dact: array<vec4<f32>>;     // (T, F)
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<f32>>; // (T, F); GATED: (T, 2, F): dgate, dup
@group(0) @binding(4) var<storage, read_write> act: array<vec4<f32>>; // (T, F)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows * p.vectors { return; }
    let d = dact[i];
#ifdef GATED
    let gate = i + i / p.vectors * p.vectors;
    let activated = activate(x[gate]);
    let up = x[gate + p.vectors];
    act[i] = activated * up;
    d_x[gate + p.vectors] = d * activated;
    d_x[gate] = d * up * slope(x[gate]);
#else
    act[i] = activate(x[i]);
    d_x[i] = d * slope(x[i]);
#endif
}
