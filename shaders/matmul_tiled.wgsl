// Matrix product in 64 x 64 tiles of workgroup memory, 4 x 4 outputs an invocation. The portable tier's kernel; the layouts, the
// packing and the meaning of every parameter are matmul.wgsl's. Writes: y = or +=, as accumulate says.
#import common/index
#import common/pack

struct Params { m: u32, n: u32, k: u32, accumulate: u32, alpha: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // (M, K), TN: (K, M)
#ifdef PACKED
@group(0) @binding(2) var<storage, read> w: array<u32>;        // (N, K), NN and TN: (K, N), in pairs
#else
@group(0) @binding(2) var<storage, read> w: array<f32>;        // (N, K), NN and TN: (K, N)
#endif
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // (M, N)
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;     // (N)
#endif

const TILE = 64u;
const DEPTH = 16u;
var<workgroup> xs: array<f32, 1024>;  // (DEPTH, TILE)
var<workgroup> ws: array<f32, 1024>;  // (DEPTH, TILE)

fn x_at(row: u32, kk: u32) -> f32 {
    if row >= p.m || kk >= p.k { return 0.0; }
#ifdef TN
    return x[kk * p.m + row];
#else
    return x[row * p.k + kk];
#endif
}

fn w_at(kk: u32, col: u32) -> f32 {
    if col >= p.n || kk >= p.k { return 0.0; }
#ifdef NT
    let at = col * p.k + kk;
#else
    let at = kk * p.n + col;
#endif
#ifdef PACKED
    return unpack_one(w[at / 2u], at);
#else
    return w[at];
#endif
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles_n = (p.n + TILE - 1u) / TILE;
    let tile = flat_group(group, groups);
    let row0 = (tile / tiles_n) * TILE;
    let col0 = (tile % tiles_n) * TILE;
    // Surplus workgroups leave whole, so the barriers below are met by all.
    if row0 >= p.m { return; }
    let ty = (lane / 16u) * 4u;
    let tx = (lane % 16u) * 4u;
    var sums: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) { sums[i] = vec4<f32>(); }
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        // Neighbouring lanes read neighbouring addresses of each operand's own layout.
        for (var e = lane; e < TILE * DEPTH; e += 256u) {
#ifdef TN
            xs[e] = x_at(row0 + e % TILE, k0 + e / TILE);
#else
            xs[(e % DEPTH) * TILE + e / DEPTH] = x_at(row0 + e / DEPTH, k0 + e % DEPTH);
#endif
#ifdef NT
            ws[(e % DEPTH) * TILE + e / DEPTH] = w_at(k0 + e % DEPTH, col0 + e / DEPTH);
#else
            ws[e] = w_at(k0 + e / TILE, col0 + e % TILE);
#endif
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let at = d * TILE;
            let b = vec4<f32>(ws[at + tx], ws[at + tx + 1u], ws[at + tx + 2u], ws[at + tx + 3u]);
            for (var i = 0u; i < 4u; i++) { sums[i] = fma(vec4<f32>(xs[at + ty + i]), b, sums[i]); }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + ty + i;
        for (var j = 0u; j < 4u; j++) {
            let col = col0 + tx + j;
            if row < p.m && col < p.n {
                let at = row * p.n + col;
                var value = p.alpha * sums[i][j];
#ifdef BIAS
                value += bias[col];
#endif
                if p.accumulate == 1u { value += y[at]; }
                y[at] = value;
            }
        }
    }
}
