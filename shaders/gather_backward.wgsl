// dtable[target[u], :] += scale * the sum of dout[r, :] over the rows r that read it. Targets are distinct
// and their rows are listed, so no two invocations write the same element, and the order of the sum is fixed.
// dtable may be a piece of a larger table, as in gather.wgsl. Writes: dtable +=.
#import common/index
struct Params { targets: u32, width: u32, scale: f32, row0: u32, count: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
// targets (U), starts (U + 1), rows (R), concatenated
@group(0) @binding(1) var<storage, read> lists: array<u32>;
@group(0) @binding(2) var<storage, read> dout: array<f32>;          // (R, D)
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;  // (N, D)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.targets * p.width { return; }
    let u = i / p.width;
    let c = i % p.width;
    let target_row = lists[u] - p.row0;
    if target_row >= p.count { return; }
    let rows = 2u * p.targets + 1u;
    let end = lists[p.targets + u + 1u];
    var sum = 0.0;
    for (var r = lists[p.targets + u]; r < end; r++) {
        sum += dout[lists[rows + r] * p.width + c];
    }
    dtable[target_row * p.width + c] += p.scale * sum;
}
