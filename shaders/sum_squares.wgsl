// First pass of a gradient norm: PARTIALS invocations each sum the squares of every PARTIALS-th element.
// Writes: partials =, from `first` on. The second pass is clip_scale.
#import common/index
const PARTIALS = 1024u;
struct Params { count: u32, first: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;               // (count)
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;  // (arenas * PARTIALS)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= PARTIALS { return; }
    var sum = 0.0;
    for (var at = i; at < p.count; at += PARTIALS) {
        let v = g[at];
        sum += v * v;
    }
    partials[p.first + i] = sum;
}
