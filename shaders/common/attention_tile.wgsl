// Shared code of the tiled attention kernels. A workgroup of LANES invocations owns TILE rows: of the queries
// (a token with one of the heads that share a kv head) or of the keys. Four neighbouring rows are a quad, and
// SIDE invocations share a quad: each multiplies the quad with every SIDE-th staged row, and then sums every
// SIDE-th vector of the staged rows. The rows that a workgroup owns are read through the cache, which
// serves the SIDE invocations of a quad; workgroup memory is for the rows that all quads read.
const LANES = 128u;
const SIDE = 8u;
const QUADS = LANES / SIDE;
const TILE = QUADS * 4u;
// Strides are odd numbers of vec4s, so that neither SIDE rows nor SIDE vectors of one row are in the same
// memory banks.
const STRIDE = VECTORS | 1u;
const PAD = QUADS + 1u;

// A quad's four vectors as columns x, y, z, w, so that their products with another vector take only
// multiply-adds.
fn quad(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(a, b, c, d));
}

// sums + the products of a quad's rows with another row, for four elements.
fn dots(rows: mat4x4<f32>, other: vec4<f32>, sums: vec4<f32>) -> vec4<f32> {
    let upper = fma(rows[0], vec4<f32>(other.x), fma(rows[1], vec4<f32>(other.y), sums));
    return fma(rows[2], vec4<f32>(other.z), fma(rows[3], vec4<f32>(other.w), upper));
}

fn capped4(scores: vec4<f32>) -> vec4<f32> {
#ifdef CAP
    return vec4<f32>(capped(scores.x), capped(scores.y), capped(scores.z), capped(scores.w));
#else
    return scores;
#endif
}
fn cap_slope4(scores: vec4<f32>) -> vec4<f32> {
#ifdef CAP
    return 1.0 - (scores / p.cap) * (scores / p.cap);
#else
    return vec4<f32>(1.0);
#endif
}

fn shared_by() -> u32 { return p.heads / p.kv_heads; }

// The order of the rows of one kv head: a token's heads, then the next token's.
fn token_of(row: u32) -> u32 { return row / shared_by(); }
fn head_of(row: u32, kv_head: u32) -> u32 { return kv_head * shared_by() + row % shared_by(); }
