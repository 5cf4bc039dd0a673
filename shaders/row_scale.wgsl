// x[r, :] *= coefficient[r]. Writes: x, in place.
#import common/index
struct Params { rows: u32, width: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coefficient: array<f32>;    // (R)
@group(0) @binding(2) var<storage, read_write> x: array<f32>;        // (R, D)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows * p.width { return; }
    x[i] *= coefficient[i / p.width];
}
