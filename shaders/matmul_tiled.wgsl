// Matrix product in square tiles of workgroup memory, EDGE x EDGE outputs an invocation. The portable tier's kernel; the
// layouts, the packing and the meaning of every parameter are matmul.wgsl's. Writes: y = or +=, as accumulate says.
// VEC4: n, k (TN: m), all strides and starts are multiples of 4; loads and stores are 16 bytes wide.
#import common/index
#import common/pack
#import common/product

#ifdef VEC4
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // (M, K), TN: (K, M)
#ifdef PACKED
@group(0) @binding(2) var<storage, read> w: array<vec2<u32>>;        // (N, K), NN and TN: (K, N), in pairs
#else
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;        // (N, K), NN and TN: (K, N)
#endif
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // (M, N)
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
#ifdef PACKED
@group(0) @binding(2) var<storage, read> w: array<u32>;
#else
@group(0) @binding(2) var<storage, read> w: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
#endif
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;           // (N)
#endif
#ifdef VEC4
#ifdef RESIDUAL
#ifdef BIAS
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;  // y's layout
#else
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;  // y's layout
#endif
#endif
#else
#ifdef RESIDUAL
#ifdef BIAS
@group(0) @binding(5) var<storage, read> residual: array<f32>;  // y's layout
#else
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // y's layout
#endif
#endif
#endif

const SIDE = 16u;                // invocations along each side of a tile
const TILE = SIDE * EDGE;
const DEPTH = 2048u / TILE;      // so that both operands' tiles fill 16 KiB
const QUADS = TILE / 4u;
var<workgroup> xs: array<vec4<f32>, 512>;  // (DEPTH, QUADS): four neighbouring rows of x at one k
var<workgroup> ws: array<vec4<f32>, 512>;  // (DEPTH, QUADS): four neighbouring columns of w at one k

// Four neighbours from `at` on, of which the first `valid` are there.
#ifdef VEC4
fn x4(at: u32, valid: u32) -> vec4<f32> {
    if valid == 0u { return vec4<f32>(); }
    return x[at / 4u];
}
fn w4(at: u32, valid: u32) -> vec4<f32> {
    if valid == 0u { return vec4<f32>(); }
#ifdef PACKED
    let words = w[at / 4u];
    return vec4<f32>(unpack_pair(words.x), unpack_pair(words.y));
#else
    return w[at / 4u];
#endif
}
#else
fn x4(at: u32, valid: u32) -> vec4<f32> {
    var found = vec4<f32>();
#each I 4
    if $Iu < valid { found[$I] = x[at + $Iu]; }
#end
    return found;
}
fn w1(at: u32) -> f32 {
#ifdef PACKED
    return unpack_one(w[at / 2u], at);
#else
    return w[at];
#endif
}
fn w4(at: u32, valid: u32) -> vec4<f32> {
    var found = vec4<f32>();
#each I 4
    if $Iu < valid { found[$I] = w1(at + $Iu); }
#end
    return found;
}
#endif

// How many of the four indices from `first` on are below `end`.
fn inside(first: u32, end: u32) -> u32 { return min(max(end, first) - first, 4u); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles_n = (p.n + TILE - 1u) / TILE;
    let tile = flat_group(group, groups);
    let row0 = (tile / tiles_n) * TILE;
    let col0 = (tile % tiles_n) * TILE;
    // Surplus workgroups leave whole, so the barriers below are met by all.
    if row0 >= p.m { return; }
    let ty = lane / SIDE;
    let tx = lane % SIDE;
    var sums: array<vec4<f32>, EDGE * EDGE / 4u>;
#each I EDGE*EDGE/4
    sums[$I] = vec4<f32>();
#end
    // Half of the invocations load a 4 x 4 block of x, the others one of w. Neighbours read on along the operand's own rows.
    let own = lane % 128u;
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        if lane < 128u {
#ifdef TN
            let quad = own % QUADS;
            let deep = own / QUADS * 4u;
            let row = row0 + quad * 4u;
#each I 4
            xs[(deep + $Iu) * QUADS + quad] =
                x4(x_row(k0 + deep + $Iu) + row, select(0u, inside(row, p.m), k0 + deep + $Iu < p.k));
#end
#else
            let quad = own / (DEPTH / 4u);
            let deep = own % (DEPTH / 4u) * 4u;
            let row = row0 + quad * 4u;
            let valid = inside(k0 + deep, p.k);
#each I 4
            let r$I = x4(x_row(row + $Iu) + k0 + deep, select(0u, valid, row + $Iu < p.m));
#end
#each I 4
            xs[(deep + $Iu) * QUADS + quad] = vec4<f32>(r0[$I], r1[$I], r2[$I], r3[$I]);
#end
#endif
        } else {
#ifdef NT
            let quad = own / (DEPTH / 4u);
            let deep = own % (DEPTH / 4u) * 4u;
            let col = col0 + quad * 4u;
            let valid = inside(k0 + deep, p.k);
#each I 4
            let c$I = w4(w_row(col + $Iu) + k0 + deep, select(0u, valid, col + $Iu < p.n));
#end
#each I 4
            ws[(deep + $Iu) * QUADS + quad] = vec4<f32>(c0[$I], c1[$I], c2[$I], c3[$I]);
#end
#else
            let quad = own % QUADS;
            let deep = own / QUADS * 4u;
            let col = col0 + quad * 4u;
#each I 4
            ws[(deep + $Iu) * QUADS + quad] =
                w4(w_row(k0 + deep + $Iu) + col, select(0u, inside(col, p.n), k0 + deep + $Iu < p.k));
#end
#endif
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
#each G EDGE/4
            let a$G = xs[d * QUADS + ty + $Gu * SIDE];
            let b$G = ws[d * QUADS + tx + $Gu * SIDE];
#end
#each G EDGE/4
#each I 4
#each H EDGE/4
            sums[($Gu * 4u + $Iu) * (EDGE / 4u) + $Hu] =
                fma(vec4<f32>(a$G[$I]), b$H, sums[($Gu * 4u + $Iu) * (EDGE / 4u) + $Hu]);
#end
#end
#end
        }
        workgroupBarrier();
    }
#each G EDGE/4
#each I 4
    {
        let row = row0 + ($Gu * SIDE + ty) * 4u + $Iu;
#each H EDGE/4
        write(row, col0 + ($Hu * SIDE + tx) * 4u, sums[($Gu * 4u + $Iu) * (EDGE / 4u) + $Hu]);
#end
    }
#end
#end
}

// Four outputs of a row, of those that are there.
fn write(row: u32, col: u32, sums: vec4<f32>) {
    if row >= p.m || col >= p.n { return; }
    var values = p.alpha * sums;
    let at = y_row(row) + col;
    let valid = inside(col, p.n);
#ifdef BIAS
#each J 4
    if $Ju < valid { values[$J] += bias[col + $Ju]; }
#end
#endif
#ifdef VEC4
#ifdef RESIDUAL
    values += residual[at / 4u];
#endif
    if p.accumulate == 1u { values += y[at / 4u]; }
    y[at / 4u] = values;
#else
#each J 4
    if $Ju < valid {
#ifdef RESIDUAL
        values[$J] += residual[at + $Ju];
#endif
        if p.accumulate == 1u { values[$J] += y[at + $Ju]; }
        y[at + $Ju] = values[$J];
    }
#end
#endif
}
