// attention.wgsl in tiles, for GPUs: a workgroup takes TILE rows of one kv head and loads KEYS keys at a time
// for all of them. So neighbouring tokens, and the heads that share a kv head, do not load a key again (Dao
// et al., 2205.14135).
// Writes: o =, lse = log sum exp of its scores.
#import common/attention
#import common/index
#import common/attention_tile
#import common/attention_keys
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;        // (T, H, HEAD_DIM)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;        // (S, G, HEAD_DIM)
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;        // (S, G, HEAD_DIM)
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;   // (T)
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;  // (T, H, HEAD_DIM)
// (T, H), the first half of the backward's stats
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
const LEAST = -3.0e38;

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
    place_rows(origin, rows, kv_head, lane);
    var most = vec4<f32>(LEAST);
    var mass = vec4<f32>();
    for (var part = 0u; part < 2u; part++) {
        // next_run has a barrier after this, and one before the next part.
        place_spans(origin, rows, part, lane);
        var run = next_run(part, 0u, first, last, lane);
        while run.x < run.y {
            for (var base = run.x; base < run.y; base += KEYS) {
                stage_keys(base, run.y, kv_head, lane);
                workgroupBarrier();
#each S KEYS/8
                var scores$S = vec4<f32>();
#end
#each I 4
                let q$I = places[own * 4u + $Iu].x;
#end
                for (var c = 0u; c < VECTORS; c++) {
                    let queries = quad(q[q0 + c], q[q1 + c], q[q2 + c], q[q3 + c]);
#each S KEYS/8
                    scores$S = dots(queries, staged[(side + $Su * SIDE) * STRIDE + c], scores$S);
#end
                }
                var grown = most;
#each S KEYS/8
                let seen$S = sees(base + side + $Su * SIDE, own, run.y);
                scores$S = select(vec4<f32>(LEAST), capped4(scores$S * p.scale), seen$S);
                grown = max(grown, scores$S);
#end
                // Until the weights are known, their place is for the lanes' maxima.
                weights[side * PAD + own] = grown;
                workgroupBarrier();
                stage_values(base, run.y, kv_head, lane);
#each J 8
                grown = max(grown, weights[$Ju * PAD + own]);
#end
                workgroupBarrier();
#each S KEYS/8
                weights[(side + $Su * SIDE) * PAD + own] = select(vec4<f32>(), exp(scores$S - grown), seen$S);
#end
                let fade = exp(most - grown);
                most = grown;
                mass *= fade;
#each I 4
#each C COLUMNS
                sum$I$C *= fade[$I];
#end
#end
                workgroupBarrier();
                let count = min(KEYS, run.y - base);
                for (var j = 0u; j < count; j++) {
                    let weight = weights[j * PAD + own];
                    mass += weight;
#each C COLUMNS
                    let value$C = staged[j * STRIDE + column$C];
#each I 4
                    sum$I$C = fma(vec4<f32>(weight[$I]), value$C, sum$I$C);
#end
#end
                }
                // All reads of these values precede the loads of the next keys.
                workgroupBarrier();
            }
            run = next_run(part, run.y, first, last, lane);
        }
    }
#each I 4
    if origin + own * 4u + $Iu < rows {
        let at = places[own * 4u + $Iu].y;
#each C COLUMNS
        if side + $Cu * SIDE < VECTORS { o[at * VECTORS + column$C] = sum$I$C / mass[$I]; }
#end
        if side == 0u { lse[at] = most[$I] + log(mass[$I]); }
    }
#end
}
