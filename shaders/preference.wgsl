// The loss of each group and dL/dlogp of each of its sequences, from summed log-probs. A group's last sequence is the negative
// (DPO: rejected), those before it are anchors (DPO: the one chosen). SFT: every sequence by itself.
//   D2O  z = beta/K * sum(policy - reference over anchors) - alpha * (policy - reference of the negative), L = softplus(-z)
//        Duan et al., 2403.03419
//   DPO  z = beta * (anchor's ratio - negative's ratio), L = (1-eps) softplus(-z) + eps softplus(z)
//        Rafailov et al., 2305.18290
//   SFT  L = -mean token log-prob, averaged over the group's sequences
// Writes: outcome =, coefficient =. Both hold the mean over `divisor` groups: the whole optimizer batch.
#import common/index
struct Params {
    groups: u32, sequences: u32, method: u32, normalize: u32,
    alpha: f32, beta: f32, smoothing: f32, divisor: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;         // (G): first sequence, end sequence
@group(0) @binding(2) var<storage, read> rows: array<vec2<u32>>;          // (S): first row, end row
@group(0) @binding(3) var<storage, read> policy: array<f32>;              // (2, S): logp, entropy
@group(0) @binding(4) var<storage, read> reference: array<f32>;           // (S): r- for anchors, r+ for the negative
@group(0) @binding(5) var<storage, read_write> outcome: array<vec4<f32>>; // (G): loss, z, anchors' reward, negative's reward
@group(0) @binding(6) var<storage, read_write> coefficient: array<f32>;   // (S): dL/dlogp of one token of the sequence

fn softplus(x: f32) -> f32 { return max(x, 0.0) + log(1.0 + exp(-abs(x))); }
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }

// One over the number of tokens a log-prob is averaged over: 1 for sums.
fn share(s: u32) -> f32 {
    let tokens = max(rows[s].y - rows[s].x, 1u);
    return select(1.0, 1.0 / f32(tokens), p.normalize == 1u);
}
fn ratio(s: u32) -> f32 { return (policy[s] - reference[s]) * share(s); }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = flat_group(group, groups) * 64u + lane;
    if g >= p.groups { return; }
    let first = spans[g].x;
    let last = spans[g].y - 1u;
    if p.method == 0u {
        let weight = 1.0 / f32(last + 1u - first);
        var loss = 0.0;
        for (var s = first; s <= last; s++) {
            let per_token = weight / f32(max(rows[s].y - rows[s].x, 1u));
            loss -= policy[s] * per_token;
            coefficient[s] = -per_token / p.divisor;
        }
        outcome[g] = vec4<f32>(loss, 0.0, 0.0, 0.0);
        return;
    }
    let anchors = f32(last - first);
    let alpha = select(p.beta, p.alpha, p.method == 2u);
    var mean = 0.0;
    for (var s = first; s < last; s++) { mean += ratio(s) / anchors; }
    let anchor_reward = p.beta * mean;
    let negative_reward = alpha * ratio(last);
    let z = anchor_reward - negative_reward;
    // dL/dz; smoothing is 0 but for conservative DPO.
    let slope = (-(1.0 - p.smoothing) * sigmoid(-z) + p.smoothing * sigmoid(z)) / p.divisor;
    for (var s = first; s < last; s++) { coefficient[s] = slope * p.beta / anchors * share(s); }
    coefficient[last] = -slope * alpha * share(last);
    let loss = (1.0 - p.smoothing) * softplus(-z) + p.smoothing * softplus(z);
    outcome[g] = vec4<f32>(loss, z, anchor_reward, negative_reward);
}
