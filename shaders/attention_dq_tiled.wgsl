// attention_dq.wgsl in the tiles of attention_tiled.wgsl: ds = w * (do.v - delta) * scale, dq = sum over keys
// of ds * k. Writes: dq =.
#import common/attention
#import common/index
#import common/attention_tile
#import common/attention_keys
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;         // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;         // (T, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;         // (T, G, HEAD_DIM)
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;    // (T)
@group(0) @binding(5) var<storage, read> stats: array<f32>;           // (2, T, H): lse, delta
@group(0) @binding(6) var<storage, read> d_o: array<vec4<f32>>;       // (T, H, HEAD_DIM)
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;  // (T, H, HEAD_DIM)

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = p.queries * shared_by();
    let tiles = (rows + TILE - 1u) / TILE;
    let tile = flat_group(group, groups);
    let kv_head = tile / tiles;
    // Surplus workgroups return as a whole, so the barriers below are reached by all.
    if kv_head >= p.kv_heads { return; }
    let origin = tile % tiles * TILE;
    let first = token_of(origin);
    let last = token_of(min(origin + TILE, rows) - 1u);
    let own = lane / SIDE;
    let side = lane % SIDE;
#each I 4
#each C COLUMNS
    var sum$I$C = vec4<f32>();
#end
#end
#each C COLUMNS
    // If HEAD_DIM is not a multiple of SIDE vectors, the last vector is computed more than once.
    let column$C = min(side + $Cu * SIDE, VECTORS - 1u);
#end
    let half = p.queries * p.heads;
    place_rows(origin, rows, kv_head, lane);
    for (var part = 0u; part < 2u; part++) {
        // next_run has a barrier after this, and one before the next part.
        place_spans(origin, rows, part, lane);
        var run = next_run(part, 0u, first, last, lane);
        while run.x < run.y {
            for (var base = run.x; base < run.y; base += KEYS) {
                stage_values(base, run.y, kv_head, lane);
                workgroupBarrier();
#each S KEYS/8
                var dp$S = vec4<f32>();
                var scores$S = vec4<f32>();
#end
#each I 4
                let at$I = places[own * 4u + $Iu].y;
                let u$I = at$I * VECTORS;
#end
                for (var c = 0u; c < VECTORS; c++) {
                    let upper = quad(d_o[u0 + c], d_o[u1 + c], d_o[u2 + c], d_o[u3 + c]);
#each S KEYS/8
                    dp$S = dots(upper, staged[(side + $Su * SIDE) * STRIDE + c], dp$S);
#end
                }
                workgroupBarrier();
                // The keys are staged last, because dq needs them again.
                stage_keys(base, run.y, kv_head, lane);
                workgroupBarrier();
#each I 4
                let q$I = places[own * 4u + $Iu].x;
#end
                for (var c = 0u; c < VECTORS; c++) {
                    let queries = quad(q[q0 + c], q[q1 + c], q[q2 + c], q[q3 + c]);
#each S KEYS/8
                    scores$S = dots(queries, staged[(side + $Su * SIDE) * STRIDE + c], scores$S);
#end
                }
                let lse = vec4<f32>(stats[at0], stats[at1], stats[at2], stats[at3]);
                let delta =
                    vec4<f32>(stats[half + at0], stats[half + at1], stats[half + at2], stats[half + at3]);
#each S KEYS/8
                // The weight of a key that is not seen may be infinite: it is replaced by zero, not
                // multiplied by zero.
                scores$S = capped4(scores$S * p.scale);
                let ds$S = exp(scores$S - lse) * (dp$S - delta) * p.scale * cap_slope4(scores$S);
                let seen$S = sees(base + side + $Su * SIDE, own, run.y);
                weights[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), ds$S, seen$S);
#end
                workgroupBarrier();
                let count = min(KEYS, run.y - base);
                for (var j = 0u; j < count; j++) {
                    let ds = weights[j * PAD + own];
#each C COLUMNS
                    let key$C = staged[j * STRIDE + column$C];
#each I 4
                    sum$I$C = fma(vec4<f32>(ds[$I]), key$C, sum$I$C);
#end
#end
                }
                // All reads of these keys precede the loads of the next values.
                workgroupBarrier();
            }
            run = next_run(part, run.y, first, last, lane);
        }
    }
#each I 4
    if origin + own * 4u + $Iu < rows {
#each C COLUMNS
        if side + $Cu * SIDE < VECTORS { dq[places[own * 4u + $Iu].x + column$C] = sum$I$C; }
#end
    }
#end
}
