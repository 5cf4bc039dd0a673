// Per row of logits: lse = log sum exp, logp = logit of the target - lse, entropy = lse - sum p * logit.
// Writes: the three (R) rows of out =, from row `first` on.
#import common/rows
struct Params { rows: u32, vocab: u32, first: u32, total: u32, cap: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;        // (rows, V)
// (total): source token, target id, sequence, _
@group(0) @binding(2) var<storage, read> predict: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;     // (3, total): logp, lse, entropy

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_of(group, groups, lane);
    if row >= p.rows { return; }
    let base = row * p.vocab;
    var most = -3.0e38;
    for (var v = first_of(lane); v < p.vocab; v += STRIDE) {
        most = max(most, logits[base + v]);
    }
    most = row_max(most, lane);
    var mass = 0.0;
    var weighted = 0.0;
    for (var v = first_of(lane); v < p.vocab; v += STRIDE) {
        let l = logits[base + v] - most;
        let e = exp(l);
        mass += e;
        weighted += e * l;
    }
    mass = row_sum(mass, lane);
    weighted = row_sum(weighted, lane);
    if first_of(lane) != 0u { return; }
    let at = p.first + row;
    let log_mass = log(mass);
    out[at] = logits[base + predict[at].y] - most - log_mass;
    out[p.total + at] = most + log_mass;
    out[2u * p.total + at] = log_mass - weighted / mass;
}
