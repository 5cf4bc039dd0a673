// Arithmetic only: measures how fast an adapter multiplies and adds. Each invocation has sixteen independent
// chains of value = value * a + b, so that latency is hidden and nothing waits for a load.
// Writes: out =, the sum of the chains, so that a compiler cannot leave out any of them.
#import common/index
struct Params { count: u32, rounds: u32, a: f32, b: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;  // (count)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.count { return; }
    let a = vec4<f32>(p.a);
    let b = vec4<f32>(p.b);
    var u = vec4<f32>(0.0, 1.0, 2.0, 3.0);
    var v = u + 4.0;
    var w = u + 8.0;
    var x = u + 12.0;
    for (var round = 0u; round < p.rounds; round++) {
#each I 16
        u = fma(u, a, b);
        v = fma(v, a, b);
        w = fma(w, a, b);
        x = fma(x, a, b);
#end
    }
    let all = u + v + w + x;
    out[i] = all.x + all.y + all.z + all.w;
}
