// attention.wgsl for software adapters with subgroups of SG lanes, one subgroup per workgroup. The lanes are
// neighbouring queries of one head, which see nearly the same keys. They loop over all keys that any of them
// sees, load each key once and broadcast it.
// A lane takes the keys that it sees in attention.wgsl's order and with its arithmetic, so the results are
// bit-identical.
// Keys between the ranges are read and must be valid numbers. With CACHE they are not read: lanes that all
// have the same range, such as answers to one prompt, share it, and otherwise each lane loops over its own.
// HEAD_DIM is a multiple of SG.
// Writes: o =, lse = log sum exp of its scores.
#import common/attention
#import common/index
const KEYS = 4u;          // keys per iteration: a load reads SPAN vectors of each
const SPAN = SG / KEYS;
// q: (T, H, HEAD_DIM)
#operand 1 q
// k: (S, G, HEAD_DIM)
#operand 2 k
// v: (S, G, HEAD_DIM)
#operand 3 v
@group(0) @binding(4) var<storage, read> ranges: array<vec4<u32>>;   // (T)
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;  // (T, H, HEAD_DIM)
// (T, H), the first half of the backward's stats
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let blocks = (p.queries + SG - 1u) / SG;
    let block = flat_group(group, groups);
    let head = block / blocks;
    // The same for all lanes: a subgroup returns as a whole or not at all.
    if head >= p.heads { return; }
    let own = (block % blocks) * SG + lane;
    let t = min(own, p.queries - 1u);
    let kv_head = head / (p.heads / p.kv_heads);
    let at = (t * p.heads + head) * VECTORS;
    let q_base = q_of(t, head);
    var query: array<vec4<f32>, VECTORS>;
    var sum: array<vec4<f32>, VECTORS>;
#each C HEAD_DIM/4
    query[$C] = load_q(q_base + $Cu) * p.scale;
    sum[$C] = vec4<f32>();
#end
    let range = in_window(ranges[t]);
    var most = -3.0e38;
    var mass = 0.0;
    for (var part = 0u; part < 2u; part++) {
        let start = select(range.z, range.x, part == 0u);
        let end = select(range.w, range.y, part == 0u);
#ifdef CACHE
        if subgroupMin(start) != subgroupMax(start) || subgroupMin(end) != subgroupMax(end) {
            for (var key = start; key < end; key++) {
                let keys = k_of(key, kv_head);
                let values = v_of(key, kv_head);
                var dots = vec4<f32>();
#each C HEAD_DIM/4
                dots = fma(query[$C], load_k(keys + $Cu), dots);
#end
                let score = capped(dots.x + dots.y + dots.z + dots.w);
                let grown = max(most, score);
                let fade = exp(most - grown);
                let weight = exp(score - grown);
                mass = mass * fade + weight;
                most = grown;
#each C HEAD_DIM/4
                sum[$C] = fma(vec4<f32>(weight), load_v(values + $Cu), sum[$C] * fade);
#end
            }
            continue;
        }
#endif
        let first = subgroupMin(select(start, 0xffffffffu, start >= end));
        let last = subgroupMax(select(end, 0u, start >= end));
        for (var base = first; base < last; base += KEYS) {
            let key = min(base + lane % KEYS, last - 1u);
            let k_source = k_of(key, kv_head) + lane / KEYS;
            let v_source = v_of(key, kv_head) + lane / KEYS;
#each J 4
            var dots$J = vec4<f32>();
#end
#each C HEAD_DIM/SG
            {
                let keys = load_k(k_source + $Cu * SPAN);
#each S SG/4
#each J 4
                dots$J = fma(query[$Cu * SPAN + $Su], subgroupBroadcast(keys, $Su * KEYS + $Ju), dots$J);
#end
#end
            }
#end
            let before = most;
#each J 4
            let mine$J = base + $Ju >= start && base + $Ju < end;
            let score$J = capped(dots$J.x + dots$J.y + dots$J.z + dots$J.w);
            let grown$J = select(most, max(most, score$J), mine$J);
            let fade$J = exp(most - grown$J);
            let weight$J = select(0.0, exp(score$J - grown$J), mine$J);
            mass = mass * fade$J + weight$J;
            most = grown$J;
#end
#each C HEAD_DIM/SG
            {
                let values = load_v(v_source + $Cu * SPAN);
                if subgroupAny(most > before) {
#each S SG/4
#each J 4
                    sum[$Cu * SPAN + $Su] =
                        fma(vec4<f32>(weight$J), subgroupBroadcast(values, $Su * KEYS + $Ju),
                            sum[$Cu * SPAN + $Su] * fade$J);
#end
#end
                } else {
#each S SG/4
#each J 4
                    sum[$Cu * SPAN + $Su] =
                        fma(vec4<f32>(weight$J), subgroupBroadcast(values, $Su * KEYS + $Ju),
                            sum[$Cu * SPAN + $Su]);
#end
#end
                }
            }
#end
        }
    }
    if own < p.queries {
#each C HEAD_DIM/4
        o[at + $Cu] = sum[$C] / mass;
#end
        lse[t * p.heads + head] = most + log(mass);
    }
}
