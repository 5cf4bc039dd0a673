// attention_dq.wgsl for software adapters with subgroups, with the method of attention_subgroup.wgsl. The
// results are bit-identical to attention_dq.wgsl's. Writes: dq =.
#import common/attention
#import common/index
const KEYS = 4u;          // keys per iteration: a load reads SPAN vectors of each
const SPAN = SG / KEYS;
// q: (T, H, HEAD_DIM)
#operand 1 q
// k: (T, G, HEAD_DIM)
#operand 2 k
// v: (T, G, HEAD_DIM)
#operand 3 v
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;    // (T)
@group(0) @binding(5) var<storage, read> stats: array<f32>;           // (2, T, H): lse, delta
// d_o: (T, H, HEAD_DIM)
#operand 6 d_o
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;  // (T, H, HEAD_DIM)

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let blocks = (p.queries + SG - 1u) / SG;
    let block = flat_group(group, groups);
    let head = block / blocks;
    if head >= p.heads { return; }
    let own = (block % blocks) * SG + lane;
    let t = min(own, p.queries - 1u);
    let kv_head = head / (p.heads / p.kv_heads);
    let row = t * p.heads + head;
    let at = q_of(t, head);
    var query: array<vec4<f32>, VECTORS>;
    var upper: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
#each C HEAD_DIM/4
    query[$C] = load_q(at + $Cu) * p.scale;
    upper[$C] = load_d_o(row * VECTORS + $Cu);
    sum[$C] = vec4<f32>();
#end
    let lse = stats[row];
    let delta = stats[p.queries * p.heads + row];
    let range = in_window(ranges[t]);
    for (var part = 0u; part < 2u; part++) {
        let start = select(range.z, range.x, part == 0u);
        let end = select(range.w, range.y, part == 0u);
        let first = subgroupMin(select(start, 0xffffffffu, start >= end));
        let last = subgroupMax(select(end, 0u, start >= end));
        for (var base = first; base < last; base += KEYS) {
            let key = min(base + lane % KEYS, last - 1u);
            let k_source = k_of(key, kv_head) + lane / KEYS;
            let v_source = v_of(key, kv_head) + lane / KEYS;
#each J 4
            var dots$J = vec4<f32>();
            var dp$J = vec4<f32>();
#end
#each C HEAD_DIM/SG
            let keys$C = load_k(k_source + $Cu * SPAN);
            let values$C = load_v(v_source + $Cu * SPAN);
#each S SG/4
#each J 4
            dots$J = fma(query[$Cu * SPAN + $Su], subgroupBroadcast(keys$C, $Su * KEYS + $Ju), dots$J);
            dp$J = fma(upper[$Cu * SPAN + $Su], subgroupBroadcast(values$C, $Su * KEYS + $Ju), dp$J);
#end
#end
#end
#each J 4
            let mine$J = base + $Ju >= start && base + $Ju < end;
            let score$J = capped(dots$J.x + dots$J.y + dots$J.z + dots$J.w);
            let slope$J = exp(score$J - lse) * (dp$J.x + dp$J.y + dp$J.z + dp$J.w - delta) * p.scale
                * cap_slope(score$J);
            let ds$J = select(0.0, slope$J, mine$J);
#end
#each C HEAD_DIM/SG
#each S SG/4
#each J 4
            sum[$Cu * SPAN + $Su] = fma(vec4<f32>(ds$J), subgroupBroadcast(keys$C, $Su * KEYS + $Ju),
                sum[$Cu * SPAN + $Su]);
#end
#end
#end
        }
    }
    if own < p.queries {
#each C HEAD_DIM/4
        dq[at + $Cu] = sum[$C];
#end
    }
}
