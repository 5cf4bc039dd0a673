// coefficient[r] = scale * dl/dlogp[r] of the tokens of retained answers, where l is an answer's loss: a mean
// over its tokens.
//   SFT  -logp                                                  slope -1
//   KL   e^d - 1 - d with d = logp - start                      slope e^d - 1
// start is the token's log-prob under the model before training. loss/retain.rs has the formulas with their
// source. Writes: coefficient, for `rows` rows from `first` on.
#import common/index
struct Params { first: u32, rows: u32, kl: u32, scale: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> predict: array<vec4<u32>>;       // (R): source, target, sequence, 0
@group(0) @binding(2) var<storage, read> rows: array<vec2<u32>>;          // (S): first row, end row
@group(0) @binding(3) var<storage, read> stats: array<f32>;               // (3, R): logp, lse, entropy
@group(0) @binding(4) var<storage, read> start: array<f32>;               // (R)
@group(0) @binding(5) var<storage, read_write> coefficient: array<f32>;   // (R)

// e^x - 1. Near 0 it is computed as a series: WGSL has no expm1.
fn expm1(x: f32) -> f32 {
    let near = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0))));
    return select(exp(x) - 1.0, near, abs(x) < 0.05);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows { return; }
    let r = p.first + i;
    let own = rows[predict[r].z];
    let slope = select(-1.0, expm1(stats[r] - start[r]), p.kl == 1u);
    coefficient[r] = p.scale * slope / f32(own.y - own.x);
}
