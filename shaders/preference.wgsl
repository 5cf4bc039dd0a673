// The loss of each group and dL/dlogp of each token, from log-probs. A group's last sequence is the negative
// (rejected), those before it are the anchors (or the one chosen). A score is a log-ratio, or a
// log-prob if `relative` is 0, and with `per_token` its mean over the tokens; each token's log-prob is
// multiplied by its weight. up is the mean score of the anchors, down that of the negative (at least
// `floor`), z = beta * up - alpha * down - gamma. Formulas:
//   MEAN          weight * mean score of all sequences                     SFT, gradient ascent
//   UNLIKELIHOOD  -mean over tokens of log(1 - p)                          Welleck et al., 1908.04319
//   LOGISTIC      weight * ((1 - smoothing) softplus(-z)
//                 + smoothing softplus(z))                                 D2O, DPO, SimPO, NPO, SimNPO
//   SQUARED       (up - down - 1 / (2 beta))^2                             IPO
//   HINGE         max(0, gamma - (beta * up - alpha * down))               hinge, SLiC
//   ODDS          beta * softplus(log odds of down - log odds of up)       ORPO
//   KTO           one of the two sequences is empty:
//                 weight * (1 - sigmoid(beta * (up - kl))) of a chosen one,
//                 alpha * (1 - sigmoid(beta * (kl - down))) of a rejected one
// and sft_weight times the anchors' SFT loss is added. loss/formula.rs has every method separately, with its
// source.
// One workgroup per group, whose lanes share out the sequences. Writes: outcome =, coefficient =.
// Coefficients are divided by `divisor`, the number of groups in the optimizer batch.
#import common/index
struct Params {
    groups: u32, formula: u32, relative: u32, per_token: u32,
    alpha: f32, beta: f32, gamma: f32, smoothing: f32,
    weight: f32, sft_weight: f32, kl: f32, divisor: f32, floor: f32, first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;         // (G): first sequence, end sequence
@group(0) @binding(2) var<storage, read> rows: array<vec2<u32>>;          // (S): first row, end row
@group(0) @binding(3) var<storage, read> stats: array<f32>;               // (3, R): logp, lse, entropy
@group(0) @binding(4) var<storage, read> weights: array<f32>;             // (R): of each token's logp
// (S): weighted logp under the reference, which is r- for anchors and r+ for the negative
@group(0) @binding(5) var<storage, read> reference: array<f32>;
// (G): loss, margin, anchors' reward, negative's reward
@group(0) @binding(6) var<storage, read_write> outcome: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> coefficient: array<f32>;   // (R): dL/dlogp of each token

const MEAN = 0u;
const UNLIKELIHOOD = 1u;
const LOGISTIC = 2u;
const SQUARED = 3u;
const HINGE = 4u;
const ODDS = 5u;
const KTO = 6u;

// For 1 - p below this, log(1 - p) is continued by its tangent in p.
const LEAST = 1e-5;

fn softplus(x: f32) -> f32 { return max(x, 0.0) + log(1.0 + exp(-abs(x))); }
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }

fn tokens(s: u32) -> f32 { return f32(max(rows[s].y - rows[s].x, 1u)); }
fn is_empty(s: u32) -> bool { return rows[s].x == rows[s].y; }

// dscore/dlogp of one of the sequence's tokens.
fn share(s: u32) -> f32 { return select(1.0, 1.0 / tokens(s), p.per_token == 1u); }

// The weighted logp of each of 64 sequences. The sums have the order of sequence_sum: with weights of 1 they
// are its bits, as those of the reference are.
var<workgroup> sums: array<f32, 64>;
fn sum_up(s: u32, end: u32, lane: u32) {
    var logp = 0.0;
    if s < end {
        for (var r = rows[s].x; r < rows[s].y; r++) { logp += weights[r] * stats[r]; }
    }
    workgroupBarrier();
    sums[lane] = logp;
    workgroupBarrier();
}
fn score(s: u32, sum: f32) -> f32 {
    if p.relative == 1u { return (sum - reference[s]) * share(s); }
    return sum * share(s);
}

// -log(1 - e^logp), and its derivative. Near logp = 0, 1 - e^logp is computed as a series: WGSL has no expm1.
fn unlikelihood(logp: f32) -> vec2<f32> {
    let near = -logp * (1.0 + logp * (0.5 + logp * (1.0 / 6.0)));
    let complement = select(1.0 - exp(logp), near, logp > -0.01);
    let held = max(complement, LEAST);
    return vec2<f32>(-log(held) + (held - complement) / LEAST, exp(logp) / held);
}

// From the scores of the anchors and the negative: the loss, and its derivatives by up and down.
fn formula(up: f32, down: f32, chosen: bool) -> vec3<f32> {
    let z = p.beta * up - p.alpha * down - p.gamma;
    switch p.formula {
        case LOGISTIC: {
            let slope = p.weight * (p.smoothing * sigmoid(z) - (1.0 - p.smoothing) * sigmoid(-z));
            let loss = p.weight * ((1.0 - p.smoothing) * softplus(-z) + p.smoothing * softplus(z));
            return vec3<f32>(loss, slope * p.beta, -slope * p.alpha);
        }
        case SQUARED: {
            let off = up - down - 0.5 / p.beta;
            return vec3<f32>(off * off, 2.0 * off, -2.0 * off);
        }
        case HINGE: {
            return select(vec3<f32>(), vec3<f32>(-z, -p.beta, p.alpha), z < 0.0);
        }
        case ODDS: {
            let of_up = unlikelihood(up);
            let of_down = unlikelihood(down);
            let odds = (up + of_up.x) - (down + of_down.x);
            let slope = -p.beta * sigmoid(-odds);
            return vec3<f32>(p.beta * softplus(-odds), slope * (1.0 + of_up.y), -slope * (1.0 + of_down.y));
        }
        case KTO: {
            if chosen {
                let value = sigmoid(p.beta * (up - p.kl));
                return vec3<f32>(p.weight * (1.0 - value), -p.weight * p.beta * value * (1.0 - value), 0.0);
            }
            let value = sigmoid(p.beta * (p.kl - down));
            return vec3<f32>(p.alpha * (1.0 - value), 0.0, p.alpha * p.beta * value * (1.0 - value));
        }
        default: { return vec3<f32>(); }
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = flat_group(group, groups);
    if g >= p.groups { return; }
    let first = spans[g].x;
    let last = spans[g].y - 1u;
    let all = f32(last + 1u - first);
    let anchors = max(all - 1.0, 1.0);
    var up = 0.0;
    var imitated = 0.0;
    var down = 0.0;
    for (var begin = first; begin <= last; begin += 64u) {
        sum_up(begin + lane, last + 1u, lane);
        // Every lane adds up all scores.
        for (var s = begin; s < min(begin + 64u, last + 1u); s++) {
            let sum = sums[s - begin];
            if s == last {
                down = score(s, sum);
            } else {
                up += score(s, sum) / anchors;
                imitated += sum / (tokens(s) * anchors);
            }
        }
    }
    var loss = formula(up, max(down, p.floor), !is_empty(first));
    if down < p.floor { loss.z = 0.0; }
    loss.x -= p.sft_weight * imitated;
    var rewards = vec2<f32>(p.beta * up, select(p.alpha, p.beta, p.formula == KTO) * down);
    if p.formula <= UNLIKELIHOOD { rewards = vec2<f32>(); }
    // As TRL logs them: from summed log-probs.
    if p.formula == SQUARED { rewards *= vec2<f32>(tokens(first), tokens(last)); }
    if p.formula == MEAN {
        loss = vec3<f32>(up * (all - 1.0) + down, all - 1.0, 1.0) * p.weight / all;
    }
    for (var s = first; s <= last; s++) {
        let of_score = select(loss.y / anchors, loss.z, s == last) * share(s);
        let of_tokens = select(p.sft_weight / (tokens(s) * anchors), 0.0, s == last);
        for (var r = rows[s].x + lane; r < rows[s].y; r += 64u) {
            var d = of_score - of_tokens;
            if p.formula == UNLIKELIHOOD { d = unlikelihood(stats[r]).y / (tokens(s) * all); }
            coefficient[r] = d * weights[r] / p.divisor;
        }
    }
    if lane == 0u {
        if p.formula == UNLIKELIHOOD {
            for (var s = first; s <= last; s++) {
                for (var r = rows[s].x; r < rows[s].y; r++) {
                    loss.x += weights[r] * unlikelihood(stats[r]).x / (tokens(s) * all);
                }
            }
        }
        outcome[g] = vec4<f32>(loss.x, rewards.x - rewards.y, rewards);
    }
}
