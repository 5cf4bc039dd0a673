// dk or dv of attention.wgsl. Key t is seen by the queries [t, visible_end) of the H / G heads that share its
// kv head.
//   DV: dv = sum of w * do        else: dk = sum of ds * q
// Writes: that gradient =.
#import common/attention
#import common/index
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;          // (T, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> tokens: array<vec4<u32>>;     // (T): id, position, slot, visible_end
@group(0) @binding(4) var<storage, read> stats: array<f32>;            // (2, T, H): lse, delta
@group(0) @binding(5) var<storage, read> d_o: array<vec4<f32>>;        // (T, H, HEAD_DIM)
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;  // (T, G, HEAD_DIM)
#ifndef DV
@group(0) @binding(7) var<storage, read> v: array<vec4<f32>>;          // (T, G, HEAD_DIM)
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.queries * p.kv_heads { return; }
    let kv_head = i / p.queries;
    let t = i % p.queries;
    let shared_by = p.heads / p.kv_heads;
    let k_at = k_of(t, kv_head);
    let v_at = v_of(t, kv_head);
    var key: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
#ifndef DV
    var value: array<vec4<f32>, VECTORS>;
#endif
    for (var c = 0u; c < VECTORS; c++) {
        key[c] = k[k_at + c] * p.scale;
        sum[c] = vec4<f32>();
#ifndef DV
        value[c] = v[v_at + c];
#endif
    }
    let position = tokens[t].y;
    let end = tokens[t].w;
    for (var query = t; query < end; query++) {
        if !near(tokens[query].y, position) { continue; }
        for (var h = 0u; h < shared_by; h++) {
            let row = query * p.heads + kv_head * shared_by + h;
            let base = row * VECTORS;
            let q_base = q_of(query, kv_head * shared_by + h);
            var dots = vec4<f32>();
            for (var c = 0u; c < VECTORS; c++) { dots = fma(q[q_base + c], key[c], dots); }
            let score = capped(dots.x + dots.y + dots.z + dots.w);
            let weight = exp(score - stats[row]);
#ifdef DV
            for (var c = 0u; c < VECTORS; c++) { sum[c] = fma(vec4<f32>(weight), d_o[base + c], sum[c]); }
#else
            var dp = vec4<f32>();
            for (var c = 0u; c < VECTORS; c++) { dp = fma(d_o[base + c], value[c], dp); }
            let ds = weight * (dp.x + dp.y + dp.z + dp.w - stats[p.queries * p.heads + row]) * p.scale
                * cap_slope(score);
            for (var c = 0u; c < VECTORS; c++) { sum[c] = fma(vec4<f32>(ds), q[q_base + c], sum[c]); }
#endif
        }
    }
#ifdef DV
    let at = v_at;
#else
    let at = k_at;
#endif
    for (var c = 0u; c < VECTORS; c++) { out[at + c] = sum[c]; }
}
