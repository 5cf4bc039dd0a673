// delta = sum of do * o over a head (Dao et al., "FlashAttention", 2205.14135, appendix B). Writes: the
// second half of stats =.
#import common/index
struct Params { rows: u32, vectors: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> o: array<vec4<f32>>;        // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>;      // (T, H, HEAD_DIM)
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;    // (2, T, H): lse, delta

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows { return; }
    var dots = vec4<f32>();
    for (var c = 0u; c < p.vectors; c++) { dots += o[i * p.vectors + c] * d_o[i * p.vectors + c]; }
    stats[p.rows + i] = dots.x + dots.y + dots.z + dots.w;
}
