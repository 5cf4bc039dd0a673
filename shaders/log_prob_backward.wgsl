// dlogits = coefficient of the row * (one-hot of the target - softmax), with UNIT as if the coefficient were
// 1.
// With CAP the logits are the output of soft_cap.wgsl, and the gradient is that of its input.
// Writes: logits, in place.
#import common/columns
#import common/index
struct Params { rows: u32, vocab: u32, first: u32, total: u32, cap: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
// (total): source token, target id, sequence, _
@group(0) @binding(1) var<storage, read> predict: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;             // (3, total): logp, lse, entropy
#ifdef UNIT
@group(0) @binding(3) var<storage, read_write> logits: array<Column>;   // (rows, V)
#else
@group(0) @binding(3) var<storage, read> coefficient: array<f32>;       // (total): dL / dlogp of each row
@group(0) @binding(4) var<storage, read_write> logits: array<Column>;   // (rows, V)
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    let columns = p.vocab / PER_COLUMN;
    if i >= p.rows * columns { return; }
    let at = p.first + i / columns;
    let row = predict[at];
    let first = i % columns * PER_COLUMN;
#ifdef VEC4
    let hot = select(vec4<f32>(), vec4<f32>(1.0), vec4<u32>(row.y) == first + vec4<u32>(0u, 1u, 2u, 3u));
#else
    let hot = select(0.0, 1.0, row.y == first);
#endif
#ifdef CAP
    let gradient = (hot - exp(logits[i] - stats[p.total + at]))
        * (1.0 - (logits[i] / p.cap) * (logits[i] / p.cap));
#else
    let gradient = hot - exp(logits[i] - stats[p.total + at]);
#endif
#ifdef UNIT
    logits[i] = gradient;
#else
    logits[i] = coefficient[at] * gradient;
#endif
}
