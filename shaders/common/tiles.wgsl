// For matrix products in tiles: loads of the operands and writes of the outputs, four neighbours at a time,
// with bounds checks.
// VEC4: n, k (TN: m), all strides and starts are multiples of 4; loads and stores are 16 bytes wide.
#import common/product
#import common/weights

#ifdef VEC4
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // (M, K), TN: (K, M)
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // (M, N)
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
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

// What tiles hold. HALF rounds the operands to f16; the sums are f32 in both cases. Gradients, which are x in
// NN and TN, are often below f16's smallest normal number, 6e-5. Before they are rounded they are scaled by a
// power of two, which is exact. A value that then exceeds f16 becomes infinity. That shows in the loss; a
// wrong number would not.
#ifdef HALF
alias Staged = f16;
alias Staged4 = vec4<f16>;
#ifdef NT
const SCALE = 1.0;
#else
const SCALE = 256.0;
#endif
#else
alias Staged = f32;
alias Staged4 = vec4<f32>;
const SCALE = 1.0;
#endif

// Four neighbours from `at` on, of which the first `valid` exist.
#ifdef VEC4
fn x4(at: u32, valid: u32) -> vec4<f32> {
    if valid == 0u { return vec4<f32>(); }
    return x[at / 4u];
}
fn weights4(at: u32, valid: u32) -> vec4<f32> {
    if valid == 0u { return vec4<f32>(); }
    return w4(at);
}
#else
fn x4(at: u32, valid: u32) -> vec4<f32> {
    var found = vec4<f32>();
#each I 4
    if $Iu < valid { found[$I] = x[at + $Iu]; }
#end
    return found;
}
fn weights4(at: u32, valid: u32) -> vec4<f32> {
    var found = vec4<f32>();
#each I 4
    if $Iu < valid { found[$I] = w1(at + $Iu); }
#end
    return found;
}
#endif

// How many of the four indices from `first` on are below `end`.
fn inside(first: u32, end: u32) -> u32 { return min(max(end, first) - first, 4u); }

// Writes four outputs of a row, those of them that exist.
fn write(row: u32, col: u32, sums: vec4<f32>) {
    if row >= p.m || col >= p.n { return; }
    var values = p.alpha * (sums * (1.0 / SCALE));
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
