// Sums of log-probs and of entropies over each sequence's rows, which are consecutive. Writes: sums =.
#import common/index
struct Params { sequences: u32, total: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;  // (S): first row, end row
@group(0) @binding(2) var<storage, read> stats: array<f32>;        // (3, total): logp, lse, entropy
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;   // (2, S): logp, entropy

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let s = flat_group(group, groups) * 64u + lane;
    if s >= p.sequences { return; }
    var logp = 0.0;
    var entropy = 0.0;
    for (var r = spans[s].x; r < spans[s].y; r++) {
        logp += stats[r];
        entropy += stats[2u * p.total + r];
    }
    sums[s] = logp;
    sums[p.sequences + s] = entropy;
}
