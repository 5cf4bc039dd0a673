// attention_dkv.wgsl in tiles: a workgroup takes TILE keys of one kv head and loads ROWS queries at a time
// for all of them, and in turn d_o of these queries. Key t is seen by the queries [t, visible_end) of
// the heads that share its kv head.
// dv = sum of w * do, dk = sum of ds * q, in one tensor with the layout of k and v.
//   DK, DV: only that gradient, for heads whose two sums do not fit into the registers
// Writes: each gradient =.
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
var<workgroup> staged: array<vec4<f32>, ROWS * STRIDE>;                // (ROWS, VECTORS): queries or d_o
// (ROWS, QUADS): one for each key of a quad
#ifndef DK
var<workgroup> weights: array<vec4<f32>, ROWS * PAD>;
#endif
#ifndef DV
var<workgroup> slopes: array<vec4<f32>, ROWS * PAD>;                   // (ROWS, QUADS): ds
#endif
// (TILE): a key's place in k, its place in v, its visible_end and its position
var<workgroup> key_rows: array<vec4<u32>, TILE>;
var<workgroup> seen_end: u32;

fn last_seen(first: u32) -> u32 {
    var end = 0u;
    for (var t = first; t < min(first + TILE, p.queries); t++) { end = max(end, tokens[t].w); }
    return end;
}

fn stage_queries(base: u32, end: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < ROWS * VECTORS; i += LANES) {
        let row = min(base + i / VECTORS, end - 1u);
        let at = q_of(token_of(row), head_of(row, kv_head));
        staged[i / VECTORS * STRIDE + i % VECTORS] = q[at + i % VECTORS];
    }
}

fn stage_upper(base: u32, end: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < ROWS * VECTORS; i += LANES) {
        let row = min(base + i / VECTORS, end - 1u);
        let at = token_of(row) * p.heads + head_of(row, kv_head);
        staged[i / VECTORS * STRIDE + i % VECTORS] = d_o[at * VECTORS + i % VECTORS];
    }
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
#each I 4
#each C COLUMNS
#ifndef DV
    var dk$I$C = vec4<f32>();
#endif
#ifndef DK
    var dv$I$C = vec4<f32>();
#endif
#end
#end
#each C COLUMNS
    // If HEAD_DIM is not a multiple of SIDE vectors, the last vector is computed more than once.
    let column$C = min(side + $Cu * SIDE, VECTORS - 1u);
#end
    if lane < TILE {
        let t = min(first + lane, p.queries - 1u);
        key_rows[lane] = vec4<u32>(k_of(t, kv_head), v_of(t, kv_head), tokens[t].w, tokens[t].y);
    }
    if lane == 0u { seen_end = last_seen(first); }
    // A barrier before and after the load.
    let end = workgroupUniformLoad(&seen_end) * shared_by();
    for (var base = first * shared_by(); base < end; base += ROWS) {
#ifndef DV
        stage_upper(base, end, kv_head, lane);
        workgroupBarrier();
#each S ROWS/8
        var dp$S = vec4<f32>();
#end
#each I 4
        let v$I = key_rows[own * 4u + $Iu].y;
#end
        for (var c = 0u; c < VECTORS; c++) {
            let values = quad(v[v0 + c], v[v1 + c], v[v2 + c], v[v3 + c]);
#each S ROWS/8
            dp$S = dots(values, staged[(side + $Su * SIDE) * STRIDE + c], dp$S);
#end
        }
        workgroupBarrier();
#endif
        stage_queries(base, end, kv_head, lane);
        workgroupBarrier();
#each S ROWS/8
        var scores$S = vec4<f32>();
#end
#each I 4
        let k$I = key_rows[own * 4u + $Iu].x;
#end
        for (var c = 0u; c < VECTORS; c++) {
            let keys = quad(k[k0 + c], k[k1 + c], k[k2 + c], k[k3 + c]);
#each S ROWS/8
            scores$S = dots(keys, staged[(side + $Su * SIDE) * STRIDE + c], scores$S);
#end
        }
#each I 4
        let key_row$I = key_rows[own * 4u + $Iu];
#end
        let starts = first + own * 4u + vec4<u32>(0u, 1u, 2u, 3u);
        let ends = vec4<u32>(key_row0.z, key_row1.z, key_row2.z, key_row3.z);
        let positions = vec4<u32>(key_row0.w, key_row1.w, key_row2.w, key_row3.w);
#each S ROWS/8
        {
            let row = min(base + side + $Su * SIDE, end - 1u);
            let t = token_of(row);
            let at = t * p.heads + head_of(row, kv_head);
            // The weight of a query that does not see the key may be infinite: it is replaced by zero, not
            // multiplied by zero.
            let score = capped4(scores$S * p.scale);
            let weight = exp(score - stats[at]);
            let close = vec4<u32>(tokens[t].y) - positions < vec4<u32>(p.window);
            let seen = (vec4<u32>(t) >= starts) & (vec4<u32>(t) < ends) & close;
#ifndef DK
            weights[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), weight, seen);
#endif
#ifndef DV
            let slope = weight * (dp$S - stats[p.queries * p.heads + at]) * p.scale * cap_slope4(score);
            slopes[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), slope, seen);
#endif
        }
#end
        workgroupBarrier();
        let count = min(ROWS, end - base);
#ifndef DV
        for (var j = 0u; j < count; j++) {
            let slope = slopes[j * PAD + own];
#each C COLUMNS
            let query$C = staged[j * STRIDE + column$C];
#each I 4
            dk$I$C = fma(vec4<f32>(slope[$I]), query$C, dk$I$C);
#end
#end
        }
        // All reads of what is staged precede the next loads.
        workgroupBarrier();
#endif
#ifndef DK
        stage_upper(base, end, kv_head, lane);
        workgroupBarrier();
        for (var j = 0u; j < count; j++) {
            let weight = weights[j * PAD + own];
#each C COLUMNS
            let upper$C = staged[j * STRIDE + column$C];
#each I 4
            dv$I$C = fma(vec4<f32>(weight[$I]), upper$C, dv$I$C);
#end
#end
        }
        workgroupBarrier();
#endif
    }
#each I 4
    if first + own * 4u + $Iu < p.queries {
        let key_row = key_rows[own * 4u + $Iu];
#each C COLUMNS
        if side + $Cu * SIDE < VECTORS {
#ifndef DV
            out[key_row.x + column$C] = dk$I$C;
#endif
#ifndef DK
            out[key_row.y + column$C] = dv$I$C;
#endif
        }
#end
    }
#end
}
