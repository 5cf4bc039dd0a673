// x = cap * tanh(x / cap), in place (Gemma 2, 2408.00118). tanh is written so that large values of either
// sign do not give NaN.
#import common/index
struct Params { count: u32, cap: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;  // (count)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.count { return; }
    x[i] = p.cap * (1.0 - 2.0 / (exp(2.0 * x[i] / p.cap) + 1.0));
}
