// For matrix products in tiles: loads of the operands and writes of the outputs, four neighbours at a time,
// with bounds checks.
// VEC4: n, k (TN: m), all strides and starts are multiples of 4; loads and stores are 16 bytes wide.
#import common/adapters
#import common/epilogue
#import common/product
#import common/weights

#ifdef VEC4
alias Element = vec4<f32>;
#else
alias Element = f32;
#endif
@group(0) @binding(1) var<storage, read> x: array<Element>;  // (M, K), TN: (K, M)

// The element types of tiles. HALF rounds the operands to f16; the sums are f32 in both cases. Gradients,
// which are x in NN and TN, are often below f16's smallest normal number, 6e-5. Before they are rounded they
// are scaled by a power of two, which is exact. A value that then exceeds f16's range becomes infinite, which
// shows in the loss; a wrong finite number might not.
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

// Writes up to four outputs of a row: those inside the output's bounds.
fn write(row: u32, col: u32, sums: vec4<f32>) {
    if row >= p.m || col >= p.n { return; }
    let outputs = add_bias(p.alpha * (sums * (1.0 / SCALE)), col);
    let at = y_row(row) + col;
#ifdef VEC4
#ifdef ADAPTERS
    y[at / 4u] = finished(at / 4u, outputs) + adapted(row, col);
#else
    write_element(at / 4u, outputs);
#endif
#else
    let valid = inside(col, p.n);
#each J 4
    if $Ju < valid { write_element(at + $Ju, outputs[$J]); }
#end
#endif
}
