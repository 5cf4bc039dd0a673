// dq of attention.wgsl: with w = exp(scale q.k - lse), ds = w * (do.v - delta) * scale, dq = sum over keys of
// ds * k. Writes: dq =.
#import common/attention
#import common/index
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;         // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;         // (T, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;         // (T, G, HEAD_DIM)
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;    // (T)
@group(0) @binding(5) var<storage, read> stats: array<f32>;           // (2, T, H): lse, delta
@group(0) @binding(6) var<storage, read> d_o: array<vec4<f32>>;       // (T, H, HEAD_DIM)
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;  // (T, H, HEAD_DIM)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.queries * p.heads { return; }
    let head = i / p.queries;
    let t = i % p.queries;
    let kv_head = head / (p.heads / p.kv_heads);
    let row = t * p.heads + head;
    let at = q_of(t, head);
    var query: array<vec4<f32>, VECTORS>;
    var upper: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
    for (var c = 0u; c < VECTORS; c++) {
        query[c] = q[at + c] * p.scale;
        upper[c] = d_o[row * VECTORS + c];
        sum[c] = vec4<f32>();
    }
    let lse = stats[row];
    let delta = stats[p.queries * p.heads + row];
    let range = in_window(ranges[t]);
    let prefix = range.y - range.x;
    let count = prefix + range.w - range.z;
    for (var n = 0u; n < count; n++) {
        let key = select(range.z + n - prefix, range.x + n, n < prefix);
        let keys = k_of(key, kv_head);
        let values = v_of(key, kv_head);
        var dots = vec4<f32>();
        var dp = vec4<f32>();
        for (var c = 0u; c < VECTORS; c++) {
            dots = fma(query[c], k[keys + c], dots);
            dp = fma(upper[c], v[values + c], dp);
        }
        let score = capped(dots.x + dots.y + dots.z + dots.w);
        let ds = exp(score - lse) * (dp.x + dp.y + dp.z + dp.w - delta) * p.scale * cap_slope(score);
        for (var c = 0u; c < VECTORS; c++) { sum[c] = fma(vec4<f32>(ds), k[keys + c], sum[c]); }
    }
    for (var c = 0u; c < VECTORS; c++) { dq[at + c] = sum[c]; }
}
