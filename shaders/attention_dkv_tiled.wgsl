// attention_dkv.wgsl in tiles, with both gradients in one pass: a workgroup takes TILE keys of one kv head
// and loads ROWS queries at a time for all of them. Key t is seen by the queries [t, visible_end) of the
// heads that share its kv head.
// dv = sum of w * do, dk = sum of ds * q, in one tensor with the layout of k and v. Writes: both =.
#import common/attention
#import common/index
#import common/attention_tile
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;          // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;          // (T, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;          // (T, G, HEAD_DIM)
@group(0) @binding(4) var<storage, read> tokens: array<vec4<u32>>;     // (T): id, position, slot, visible_end
@group(0) @binding(5) var<storage, read> stats: array<f32>;            // (2, T, H): lse, delta
@group(0) @binding(6) var<storage, read> d_o: array<vec4<f32>>;        // (T, H, HEAD_DIM)
@group(0) @binding(7) var<storage, read_write> out: array<vec4<f32>>;  // (T, G, HEAD_DIM), twice: dk, dv
var<workgroup> queries: array<vec4<f32>, ROWS * STRIDE>;               // (ROWS, VECTORS)
var<workgroup> upper: array<vec4<f32>, ROWS * STRIDE>;                 // (ROWS, VECTORS)
// (ROWS, QUADS): one for each key of a quad
var<workgroup> weights: array<vec4<f32>, ROWS * PAD>;
var<workgroup> slopes: array<vec4<f32>, ROWS * PAD>;                   // (ROWS, QUADS): ds
var<workgroup> seen_end: u32;

fn last_seen(first: u32) -> u32 {
    var end = 0u;
    for (var t = first; t < min(first + TILE, p.queries); t++) { end = max(end, tokens[t].w); }
    return end;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles = (p.queries + TILE - 1u) / TILE;
    let tile = flat_group(group, groups);
    let kv_head = tile / tiles;
    // Surplus workgroups return as a whole, so the barriers below are reached by all.
    if kv_head >= p.kv_heads { return; }
    let first = tile % tiles * TILE;
    let own = lane / SIDE;
    let side = lane % SIDE;
    let starts = first + own * 4u + vec4<u32>(0u, 1u, 2u, 3u);
#each I 4
    let t$I = min(starts[$I], p.queries - 1u);
    let k$I = k_of(t$I, kv_head);
    let v$I = v_of(t$I, kv_head);
#each C COLUMNS
    var dk$I$C = vec4<f32>();
    var dv$I$C = vec4<f32>();
#end
#end
#each C COLUMNS
    // If HEAD_DIM is not a multiple of SIDE vectors, the last vector is computed more than once.
    let column$C = min(side + $Cu * SIDE, VECTORS - 1u);
#end
    let ends = vec4<u32>(tokens[t0].w, tokens[t1].w, tokens[t2].w, tokens[t3].w);
    let positions = vec4<u32>(tokens[t0].y, tokens[t1].y, tokens[t2].y, tokens[t3].y);
    if lane == 0u { seen_end = last_seen(first); }
    let end = workgroupUniformLoad(&seen_end) * shared_by();
    for (var base = first * shared_by(); base < end; base += ROWS) {
        for (var i = lane; i < ROWS * VECTORS; i += LANES) {
            let row = min(base + i / VECTORS, end - 1u);
            let place = i / VECTORS * STRIDE + i % VECTORS;
            let head = head_of(row, kv_head);
            queries[place] = q[q_of(token_of(row), head) + i % VECTORS];
            upper[place] = d_o[(token_of(row) * p.heads + head) * VECTORS + i % VECTORS];
        }
        workgroupBarrier();
#each S ROWS/8
        var scores$S = vec4<f32>();
        var dp$S = vec4<f32>();
#end
        for (var c = 0u; c < VECTORS; c++) {
            let keys = quad(k[k0 + c], k[k1 + c], k[k2 + c], k[k3 + c]);
            let values = quad(v[v0 + c], v[v1 + c], v[v2 + c], v[v3 + c]);
#each S ROWS/8
            scores$S = dots(keys, queries[(side + $Su * SIDE) * STRIDE + c], scores$S);
            dp$S = dots(values, upper[(side + $Su * SIDE) * STRIDE + c], dp$S);
#end
        }
#each S ROWS/8
        {
            let row = min(base + side + $Su * SIDE, end - 1u);
            let t = token_of(row);
            let at = t * p.heads + head_of(row, kv_head);
            // The weight of a query that does not see the key may be infinite: it is replaced by zero, not
            // multiplied by zero.
            let score = capped4(scores$S * p.scale);
            let weight = exp(score - stats[at]);
            let slope = weight * (dp$S - stats[p.queries * p.heads + at]) * p.scale * cap_slope4(score);
            let close = vec4<u32>(tokens[t].y) - positions < vec4<u32>(p.window);
            let seen = (vec4<u32>(t) >= starts) & (vec4<u32>(t) < ends) & close;
            weights[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), weight, seen);
            slopes[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), slope, seen);
        }
#end
        workgroupBarrier();
        let count = min(ROWS, end - base);
        for (var j = 0u; j < count; j++) {
            let weight = weights[j * PAD + own];
            let slope = slopes[j * PAD + own];
#each C COLUMNS
            let query$C = queries[j * STRIDE + column$C];
            let upper$C = upper[j * STRIDE + column$C];
#each I 4
            dk$I$C = fma(vec4<f32>(slope[$I]), query$C, dk$I$C);
            dv$I$C = fma(vec4<f32>(weight[$I]), upper$C, dv$I$C);
#end
#end
        }
        // All reads of these queries precede the loads of the next ones.
        workgroupBarrier();
    }
#each I 4
    if starts[$I] < p.queries {
#each C COLUMNS
        if side + $Cu * SIDE < VECTORS {
            out[k$I + column$C] = dk$I$C;
            out[v$I + column$C] = dv$I$C;
        }
#end
    }
#end
}
