// average = decay * average + (1 - decay) * value. Writes: average, in place.
#import common/index
struct Params { vectors: u32, decay: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> value: array<vec4<f32>>;          // (vectors)
@group(0) @binding(2) var<storage, read_write> average: array<vec4<f32>>;  // (vectors)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.vectors { return; }
    average[i] = p.decay * average[i] + (1.0 - p.decay) * value[i];
}
