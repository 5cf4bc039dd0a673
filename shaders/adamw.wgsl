// AdamW with decoupled decay (Loshchilov & Hutter, 1711.05101), in torch.optim.AdamW's order:
//   w *= 1 - lr * decay; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= step * m / (sqrt(v) / root + eps)
// with step = lr / (1 - b1^t), root = sqrt(1 - b2^t), and g times the clip scale; a scale below 0 skips the
// step.
// Writes: w, m, v, in place; g is not changed.
#import common/index
struct Params {
    vectors: u32, shrink: f32, beta1: f32, beta2: f32, step: f32, root: f32, eps: f32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> clip: array<f32>;           // (2): norm, scale
@group(0) @binding(2) var<storage, read> g: array<vec4<f32>>;        // (vectors)
@group(0) @binding(3) var<storage, read_write> w: array<vec4<f32>>;  // (vectors)
@group(0) @binding(4) var<storage, read_write> m: array<vec4<f32>>;  // (vectors)
@group(0) @binding(5) var<storage, read_write> v: array<vec4<f32>>;  // (vectors)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.vectors || clip[1] < 0.0 { return; }
    let gradient = g[i] * clip[1];
    let first = p.beta1 * m[i] + (1.0 - p.beta1) * gradient;
    let second = p.beta2 * v[i] + (1.0 - p.beta2) * gradient * gradient;
    m[i] = first;
    v[i] = second;
    w[i] = w[i] * p.shrink - p.step * first / (sqrt(second) / p.root + p.eps);
}
