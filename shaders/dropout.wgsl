// y = mask * x, mask = 1/(1-p) where the counter-based uniform of the element is >= p, else 0 (inverted
// dropout).
// Writes: y =; with ACCUMULATE y +=, for the backward pass: the same counters give the same mask.
#import common/index
#import common/rng
struct Params { count: u32, stream: u32, step: u32, seed: u32, p: f32, scale: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // (count)
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // (count)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.count { return; }
    let keep = uniform_from(pcg4d(vec4<u32>(i, p.stream, p.step, p.seed)).x) >= p.p;
    let value = select(0.0, x[i] * p.scale, keep);
#ifdef ACCUMULATE
    y[i] += value;
#else
    y[i] = value;
#endif
}
