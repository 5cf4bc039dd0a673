// Causal attention over two key ranges, with a running softmax (Milakov & Gimelshein, 1805.02867): no T x T
// matrix.
// Query t of head h sees the keys [prefix_start, prefix_end) and [segment_start, segment_end) of kv head h /
// (H / G).
// Writes: o =, lse = log sum exp of its scores.
#import common/attention
#import common/index
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;        // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;        // (S, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;        // (S, G, HEAD_DIM)
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;   // (T)
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;  // (T, H, HEAD_DIM)
// (T, H), the first half of the backward's stats
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.queries * p.heads { return; }
    // Neighbours in a workgroup are neighbouring tokens of one head: they read the same keys.
    let head = i / p.queries;
    let t = i % p.queries;
    let kv_head = head / (p.heads / p.kv_heads);
    let at = (t * p.heads + head) * VECTORS;
    let q_base = q_of(t, head);
    var query: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
    for (var c = 0u; c < VECTORS; c++) {
        query[c] = q[q_base + c] * p.scale;
        sum[c] = vec4<f32>();
    }
    let range = in_window(ranges[t]);
    let prefix = range.y - range.x;
    let count = prefix + range.w - range.z;
    var most = -3.0e38;
    var mass = 0.0;
    for (var n = 0u; n < count; n++) {
        let key = select(range.z + n - prefix, range.x + n, n < prefix);
        let keys = k_of(key, kv_head);
        let values = v_of(key, kv_head);
        var dots = vec4<f32>();
        for (var c = 0u; c < VECTORS; c++) { dots = fma(query[c], k[keys + c], dots); }
        let score = capped(dots.x + dots.y + dots.z + dots.w);
        let grown = max(most, score);
        let fade = exp(most - grown);
        let weight = exp(score - grown);
        mass = mass * fade + weight;
        for (var c = 0u; c < VECTORS; c++) { sum[c] = fma(vec4<f32>(weight), v[values + c], sum[c] * fade); }
        most = grown;
    }
    for (var c = 0u; c < VECTORS; c++) { o[at + c] = sum[c] / mass; }
    lse[t * p.heads + head] = most + log(mass);
}
