// The loop of a tile of queries over its keys, for attention_tiled.wgsl and attention_dq_tiled.wgsl, which
// bind k, v and ranges.
// Keys come in runs without gaps: keys that no row of the tile sees are neither read nor multiplied.
var<workgroup> staged: array<vec4<f32>, KEYS * STRIDE>;  // (KEYS, VECTORS): keys or values
var<workgroup> weights: array<vec4<f32>, KEYS * PAD>;    // (KEYS, QUADS): one for each row of a quad
var<workgroup> next: vec2<u32>;
// What an invocation needs of its rows now and then is here, because registers decide how many subgroups run
// at once.
var<workgroup> places: array<vec2<u32>, TILE>;           // (TILE): a row's query in q, and (token, head)
var<workgroup> spans: array<vec2<u32>, TILE>;            // (TILE): a row's key range in the part

// The key range of token t in the prefix (part 0) or in its segment (part 1).
fn range_of(t: u32, part: u32) -> vec2<u32> {
    let range = in_window(ranges[t]);
    return select(range.zw, range.xy, part == 0u);
}

// The next run of keys, from `cursor` on, in which each key is seen by one of the tokens first..=last. Empty
// after the last run.
fn find_run(part: u32, cursor: u32, first: u32, last: u32) -> vec2<u32> {
    var start = 0xffffffffu;
    for (var t = first; t <= last; t++) {
        let range = range_of(t, part);
        if range.x < range.y && cursor < range.y { start = min(start, max(range.x, cursor)); }
    }
    // The token that sees `start` and has the largest end sees every key of the run.
    var end = 0u;
    for (var t = first; t <= last; t++) {
        let range = range_of(t, part);
        if range.x <= start && start < range.y { end = max(end, range.y); }
    }
    return vec2<u32>(start, end);
}

// find_run's result for all invocations. All of them must call it; it has a barrier before and after the
// load.
fn next_run(part: u32, cursor: u32, first: u32, last: u32, lane: u32) -> vec2<u32> {
    if lane == 0u { next = find_run(part, cursor, first, last); }
    return workgroupUniformLoad(&next);
}

// Past a run's end, its last key is staged again, because the memory there may contain NaN. The weights of
// these keys are zero.
fn stage_keys(base: u32, end: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < KEYS * VECTORS; i += LANES) {
        let key = min(base + i / VECTORS, end - 1u);
        staged[i / VECTORS * STRIDE + i % VECTORS] = k[k_of(key, kv_head) + i % VECTORS];
    }
}

fn stage_values(base: u32, end: u32, kv_head: u32, lane: u32) {
    for (var i = lane; i < KEYS * VECTORS; i += LANES) {
        let key = min(base + i / VECTORS, end - 1u);
        staged[i / VECTORS * STRIDE + i % VECTORS] = v[v_of(key, kv_head) + i % VECTORS];
    }
}

// The first row of a tile is `origin` of `rows`. What this stores is there after the next barrier.
fn place_rows(origin: u32, rows: u32, kv_head: u32, lane: u32) {
    if lane < TILE {
        let row = min(origin + lane, rows - 1u);
        let t = token_of(row);
        let head = head_of(row, kv_head);
        places[lane] = vec2<u32>(q_of(t, head), t * p.heads + head);
    }
}
fn place_spans(origin: u32, rows: u32, part: u32, lane: u32) {
    if lane < TILE { spans[lane] = range_of(token_of(min(origin + lane, rows - 1u)), part); }
}

// Which rows of a quad see a key before `end`.
fn sees(key: u32, quad: u32, end: u32) -> vec4<bool> {
    let a = spans[quad * 4u];
    let b = spans[quad * 4u + 1u];
    let c = spans[quad * 4u + 2u];
    let d = spans[quad * 4u + 3u];
    let starts = vec4<u32>(a.x, b.x, c.x, d.x);
    let ends = min(vec4<u32>(a.y, b.y, c.y, d.y), vec4<u32>(end));
    return (vec4<u32>(key) >= starts) & (vec4<u32>(key) < ends);
}
