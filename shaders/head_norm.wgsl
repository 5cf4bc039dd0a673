// An RMSNorm of each head of the queries and keys (Qwen 3, Gemma 3), in place: y = x * rstd * (w + shift),
// with the queries' weight or the keys'. The old x is kept in raw for the backward pass. Writes: x, in place;
// raw =, rstd =.
#import common/rows
struct Params {
    tokens: u32, heads: u32, kv_heads: u32, width: u32, at: u32, stride: u32, eps: f32, shift: f32,
    first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q_weight: array<f32>;    // (width)
@group(0) @binding(2) var<storage, read> k_weight: array<f32>;    // (width)
// (T, H + G, width), rows from `at` on, `stride` apart
@group(0) @binding(3) var<storage, read_write> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> raw: array<f32>;   // (T, H + G, width)
@group(0) @binding(5) var<storage, read_write> rstd: array<f32>;  // (T, H + G)

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_of(group, groups, lane);
    let heads = p.heads + p.kv_heads;
    if row >= p.tokens * heads { return; }
    let base = p.at + row / heads * p.stride + row % heads * p.width;
    var squares = 0.0;
    for (var c = first_of(lane); c < p.width; c += STRIDE) {
        let v = x[base + c];
        raw[row * p.width + c] = v;
        squares = fma(v, v, squares);
    }
    let r = 1.0 / sqrt(row_sum(squares, lane) / f32(p.width) + p.eps);
    let query = row % heads < p.heads;
    for (var c = first_of(lane); c < p.width; c += STRIDE) {
        let w = select(k_weight[c], q_weight[c], query) + p.shift;
        x[base + c] = x[base + c] * r * w;
    }
    if first_of(lane) == 0u { rstd[row] = r; }
}
