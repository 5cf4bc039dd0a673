// Samples one token from each row of logits, and advances the row to its next step on the device.
// Each row has its own settings. In HF's order: repetition penalty, temperature, top-k, top-p, draw.
// temperature 0 is greedy: of several largest logits the lowest id wins.
// The random number is a function of (step, sample, prompt, seed), so the token does not depend on the other
// rows of the batch.
// A row's logits become weights, exp((logit - the largest) / temperature), in place. Thresholds are found by
// search over the bits of a weight, not by sorting; ties at a threshold are kept.
// Writes: logits (penalised; weights unless temperature is 0), seen, state, tokens, ranges, history.
#import common/rows
#import common/rng
struct Params {
    ends: vec4<u32>,
    more_ends: vec4<u32>,
    rows: u32, vocab: u32, column: u32, columns: u32,
    end_count: u32, seen_words: u32, needs: u32, first_group: u32,
}
// A row's own settings.
struct Settings { seed: u32, top_k: u32, top_p: f32, temperature: f32, penalty: f32, max_new: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;        // (B, V)
// (B, ceil(V / 32)) words, a bit for each id: set for ids in the prompt or the answer
@group(0) @binding(2) var<storage, read_write> seen: array<u32>;
// (B): prompt, sample, step, finished
@group(0) @binding(3) var<storage, read_write> state: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> tokens: array<vec4<u32>>;  // (B): id, position, slot, _
@group(0) @binding(5) var<storage, read_write> ranges: array<vec4<u32>>;  // (B): attention's key ranges
// (B, columns): the ids sampled since the last readback
@group(0) @binding(6) var<storage, read_write> history: array<u32>;
@group(0) @binding(7) var<storage, read> settings: array<vec4<u32>>;      // (B, 2): each row's Settings

const NONE = 0xffffffffu;

fn ends(id: u32) -> bool {
    for (var e = 0u; e < p.end_count; e++) {
        if select(p.more_ends[e & 3u], p.ends[e & 3u], e < 4u) == id { return true; }
    }
    return false;
}

#ifdef SERIAL
fn row_sums(values: vec4<f32>, lane: u32) -> vec4<f32> { return values; }
#else
var<workgroup> sums: array<vec4<f32>, WORKGROUP>;
fn row_sums(values: vec4<f32>, lane: u32) -> vec4<f32> {
    sums[lane] = values;
    for (var half = WORKGROUP / 2u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        if lane < half { sums[lane] += sums[lane + half]; }
    }
    return workgroupUniformLoad(&sums[0]);
}
#endif

// For each of four floors: the mass, or with `counting` the number, of the weights that are at least the
// floor.
fn measure(base: u32, lane: u32, floors: vec4<f32>, counting: bool) -> vec4<f32> {
    var mass = vec4<f32>();
    // Four at a time: some drivers end an invocation's loops after 65,535 iterations in total.
    for (var start = first_of(lane); start < p.vocab; start += 4u * STRIDE) {
        for (var j = 0u; j < 4u; j++) {
            let v = start + j * STRIDE;
            let w = select(-1.0, logits[base + min(v, p.vocab - 1u)], v < p.vocab);
            mass += select(vec4<f32>(), vec4<f32>(select(w, 1.0, counting)), vec4<f32>(w) >= floors);
        }
    }
    return row_sums(mass, lane);
}

// The largest weight t >= `floor` for which the weights >= t hold at least `wanted` of mass (or of count).
fn threshold(base: u32, lane: u32, floor: f32, wanted: f32, counting: bool) -> f32 {
    // Non-negative floats have the order of their bits. Each iteration reduces the interval to a fifth.
    var low = bitcast<u32>(floor);
    var high = bitcast<u32>(1.0);
    while low < high {
        let step = (high - low) / 5u + 1u;
        let tried = min(low + step * vec4<u32>(1u, 2u, 3u, 4u), vec4<u32>(high));
        let enough = measure(base, lane, bitcast<vec4<f32>>(tried), counting) >= vec4<f32>(wanted);
        let ones = select(vec4<u32>(), vec4<u32>(1u), enough);
        let good = ones.x + ones.y + ones.z + ones.w;
        let next = low + (good + 1u) * step;
        low = min(low + good * step, high);
        if good < 4u { high = min(next - 1u, high); }
    }
    return bitcast<f32>(low);
}

#ifndef SERIAL
var<workgroup> chunk_mass: array<f32, WORKGROUP>;
var<workgroup> drawn: u32;
#endif

// The first id whose inclusive cumulative kept mass exceeds u times the total; each lane sums one stretch of
// the vocabulary.
fn draw(base: u32, lane: u32, floor: f32, u: f32) -> u32 {
    let stretch = (p.vocab + STRIDE - 1u) / STRIDE;
    let start = first_of(lane) * stretch;
    let end = min(start + stretch, p.vocab);
    var mass = 0.0;
    for (var v = start; v < end; v++) {
        let w = logits[base + v];
        mass += select(0.0, w, w >= floor);
    }
    var before = 0.0;
    var total = mass;
#ifndef SERIAL
    chunk_mass[lane] = mass;
    if lane == 0u { drawn = NONE; }
    workgroupBarrier();
    total = 0.0;
    for (var other = 0u; other < WORKGROUP; other++) {
        if other == lane { before = total; }
        total += chunk_mass[other];
    }
#endif
    let target_mass = u * total;
    var picked = NONE;
    // A stretch without mass cannot hold the target, so exactly one lane finds it.
    if before <= target_mass && target_mass < before + mass {
        var sum = before;
        for (var v = start; v < end; v++) {
            let w = logits[base + v];
            if w >= floor && w > 0.0 {
                sum += w;
                // Rounding may leave the last sum just below the target: then the last kept id is sampled.
                picked = v;
                if sum > target_mass { break; }
            }
        }
    }
#ifdef SERIAL
    return picked;
#else
    if picked != NONE { drawn = picked; }
    workgroupBarrier();
    return drawn;
#endif
}

// What some row's settings need. Whether a barrier is met depends on these and not on a row's own settings:
// FXC takes what a buffer holds, and what is chosen by it, for something that may vary within a workgroup.
const GREEDY = 1u;
const DRAWN = 2u;
const TOP_K = 4u;
const TOP_P = 8u;
fn some(need: u32) -> bool { return (p.needs & need) != 0u; }

fn settings_from(a: vec4<u32>, b: vec4<u32>) -> Settings {
    return Settings(a.x, a.y, bitcast<f32>(a.z), bitcast<f32>(a.w), bitcast<f32>(b.x), b.y);
}
#ifdef SERIAL
fn settings_of(row: u32, lane: u32) -> Settings {
    return settings_from(settings[2u * row], settings[2u * row + 1u]);
}
#else
var<workgroup> of_row: array<vec4<u32>, 2>;
fn settings_of(row: u32, lane: u32) -> Settings {
    if lane < 2u { of_row[lane] = settings[2u * row + lane]; }
    return settings_from(workgroupUniformLoad(&of_row[0]), workgroupUniformLoad(&of_row[1]));
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_of(group, groups, lane);
    if row >= p.rows { return; }
    let base = row * p.vocab;
    let s = state[row];
    let own = settings_of(row, lane);
    let greedy = own.temperature == 0.0;
    var most = -3.0e38;
    for (var v = first_of(lane); v < p.vocab; v += STRIDE) {
        var l = logits[base + v];
        if own.penalty != 1.0 {
            if ((seen[row * p.seen_words + v / 32u] >> (v & 31u)) & 1u) == 1u {
                l = select(l * own.penalty, l / own.penalty, l > 0.0);
                logits[base + v] = l;
            }
        }
        most = max(most, l);
    }
    most = row_max(most, lane);
    var id = NONE;
    if some(GREEDY) {
        // The lowest id among those with the largest logit, as a float: exact below 2^24.
        var first = 16777216.0;
        for (var v = first_of(lane); v < p.vocab; v += STRIDE) {
            if logits[base + v] == most { first = min(first, f32(v)); }
        }
        id = select(id, u32(-row_max(-first, lane)), greedy);
    }
    if some(DRAWN) {
        for (var v = first_of(lane); v < p.vocab; v += STRIDE) {
            // exp(-200) is zero in f32, so -infinity gets the same weight as very negative logits.
            let l = logits[base + v];
            logits[base + v] = select(exp(max((l - most) / own.temperature, -200.0)), l, greedy);
        }
#ifndef SERIAL
        storageBarrier();
        workgroupBarrier();
#endif
        var floor = 0.0;
        if some(TOP_K) {
            // Of rows without top-k, top_k is the size of the vocabulary.
            floor = threshold(base, lane, floor, f32(own.top_k), true);
        }
        if some(TOP_P) {
            let all = measure(base, lane, vec4<f32>(floor), false).x;
            floor = select(floor, threshold(base, lane, floor, own.top_p * all, false), own.top_p < 1.0);
        }
        let u = uniform_from(pcg4d(vec4<u32>(s.z, s.y, s.x, own.seed)).x);
        id = select(draw(base, lane, floor, u), id, greedy);
    }
    if first_of(lane) != 0u { return; }
    // With NaN logits no token is sampled: the row ends, and the host sees an invalid id.
    let stopped = s.w == 1u;
    history[row * p.columns + p.column] = select(id, NONE, stopped);
    if stopped { return; }
    let finished = id >= p.vocab || ends(id) || s.z + 1u >= own.max_new;
    state[row] = vec4<u32>(s.x, s.y, s.z + 1u, select(0u, 1u, finished));
    if finished { return; }
    if own.penalty != 1.0 { seen[row * p.seen_words + id / 32u] |= 1u << (id & 31u); }
    let token = tokens[row];
    tokens[row] = vec4<u32>(id, token.y + 1u, token.z + 1u, 0u);
    let range = ranges[row];
    ranges[row] = vec4<u32>(range.x, range.y, range.z, range.w + 1u);
}
