// out[c] += sum over t of a[t,c], times b[t,c] * s[t] with SCALED, times (b[t,c] - s[mean + t]) * s[t] with
// SCALED CENTERED. The gradient of a bias, and of a norm's weight. Writes: out +=.
#import common/index
struct Params {
    rows: u32, width: u32, at: u32, stride: u32, b_at: u32, b_stride: u32, s_at: u32, s_stride: u32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;          // (T, C), rows from `at` on, `stride` apart
@group(0) @binding(2) var<storage, read_write> out: array<f32>;  // (C)
#ifdef SCALED
// (T, C), rows from `b_at` on, `b_stride` apart
@group(0) @binding(3) var<storage, read> b: array<f32>;
// (T), from `s_at` on, `s_stride` apart; CENTERED: (2, T)
@group(0) @binding(4) var<storage, read> s: array<f32>;
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = flat_group(group, groups) * 64u + lane;
    if c >= p.width { return; }
    var sum = 0.0;
    for (var t = 0u; t < p.rows; t++) {
#ifdef SCALED
        var factor = b[p.b_at + t * p.b_stride + c];
#ifdef CENTERED
        factor -= s[p.rows + t];
#endif
        sum += a[p.at + t * p.stride + c] * (factor * s[p.s_at + t * p.s_stride]);
#else
        sum += a[p.at + t * p.stride + c];
#endif
    }
    out[c] += sum;
}
