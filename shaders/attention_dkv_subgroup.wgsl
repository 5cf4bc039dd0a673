// attention_dkv.wgsl for software adapters with subgroups of SG lanes, one subgroup per workgroup. The lanes
// are neighbouring keys of one kv head. They loop over all queries that see any of these keys, load each
// query once and broadcast it. A lane takes the queries that see its key in attention_dkv.wgsl's order and
// with its arithmetic, so the results are bit-identical. HEAD_DIM is a multiple of SG.
//   DV: dv = sum of w * do        else: dk = sum of ds * q
// Writes: that gradient =.
#import common/attention
#import common/index
const ROWS = 4u;          // queries per iteration: a load reads SPAN vectors of each
const SPAN = SG / ROWS;
// q: (T, H, HEAD_DIM)
#operand 1 q
// k: (T, G, HEAD_DIM)
#operand 2 k
@group(0) @binding(3) var<storage, read> tokens: array<vec4<u32>>;     // (T): id, position, slot, visible_end
@group(0) @binding(4) var<storage, read> stats: array<f32>;            // (2, T, H): lse, delta
// d_o: (T, H, HEAD_DIM)
#operand 5 d_o
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;  // (T, G, HEAD_DIM)
#ifndef DV
// v: (T, G, HEAD_DIM)
#operand 7 v
#endif

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let blocks = (p.queries + SG - 1u) / SG;
    let block = flat_group(group, groups);
    let kv_head = block / blocks;
    if kv_head >= p.kv_heads { return; }
    let own = (block % blocks) * SG + lane;
    let t = min(own, p.queries - 1u);
    let shared_by = p.heads / p.kv_heads;
    let k_at = k_of(t, kv_head);
    let v_at = v_of(t, kv_head);
    var key: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
#ifndef DV
    var value: array<vec4<f32>, VECTORS>;
#endif
#each C HEAD_DIM/4
    key[$C] = load_k(k_at + $Cu) * p.scale;
    sum[$C] = vec4<f32>();
#ifndef DV
    value[$C] = load_v(v_at + $Cu);
#endif
#end
    let position = tokens[t].y;
    let end = tokens[t].w;
    // A row is a query with one of the heads that share the kv head: row = query * shared_by + head.
    let first = subgroupMin(t) * shared_by;
    let last = subgroupMax(end) * shared_by;
    for (var base = first; base < last; base += ROWS) {
        let mine = min(base + lane % ROWS, last - 1u);
        let head = kv_head * shared_by + mine % shared_by;
        let row = mine / shared_by * p.heads + head;
        let source = row * VECTORS + lane / ROWS;
        let q_source = q_of(mine / shared_by, head) + lane / ROWS;
        let lse = stats[row];
        let at = tokens[mine / shared_by].y;
#ifndef DV
        let delta = stats[p.queries * p.heads + row];
#endif
#each J 4
        var dots$J = vec4<f32>();
#ifndef DV
        var dp$J = vec4<f32>();
#endif
#end
#each C HEAD_DIM/SG
        let queries$C = load_q(q_source + $Cu * SPAN);
        let upper$C = load_d_o(source + $Cu * SPAN);
#each S SG/4
#each J 4
        dots$J = fma(subgroupBroadcast(queries$C, $Su * ROWS + $Ju), key[$Cu * SPAN + $Su], dots$J);
#ifndef DV
        dp$J = fma(subgroupBroadcast(upper$C, $Su * ROWS + $Ju), value[$Cu * SPAN + $Su], dp$J);
#endif
#end
#end
#end
#each J 4
        let seen$J = base + $Ju >= t * shared_by && base + $Ju < end * shared_by
            && near(subgroupBroadcast(at, $Ju), position);
        let score$J = capped(dots$J.x + dots$J.y + dots$J.z + dots$J.w);
        let weight$J = exp(score$J - subgroupBroadcast(lse, $Ju));
#ifdef DV
        let factor$J = select(0.0, weight$J, seen$J);
#else
        let ds$J = weight$J * (dp$J.x + dp$J.y + dp$J.z + dp$J.w - subgroupBroadcast(delta, $Ju)) * p.scale
            * cap_slope(score$J);
        let factor$J = select(0.0, ds$J, seen$J);
#endif
#end
#each C HEAD_DIM/SG
#each S SG/4
#each J 4
#ifdef DV
        sum[$Cu * SPAN + $Su] = fma(vec4<f32>(factor$J), subgroupBroadcast(upper$C, $Su * ROWS + $Ju),
            sum[$Cu * SPAN + $Su]);
#else
        sum[$Cu * SPAN + $Su] = fma(vec4<f32>(factor$J), subgroupBroadcast(queries$C, $Su * ROWS + $Ju),
            sum[$Cu * SPAN + $Su]);
#endif
#end
#end
#end
    }
    if own < p.queries {
#ifdef DV
        let at = v_at;
#else
        let at = k_at;
#endif
#each C HEAD_DIM/4
        out[at + $Cu] = sum[$C];
#end
    }
}
