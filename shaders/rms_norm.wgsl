// rstd = 1 / sqrt(mean(x^2) + eps); y = x * rstd * (w + shift), with RESIDUAL + residual (Zhang & Sennrich,
// "Root Mean Square Layer Normalization", 1910.07467).
// Writes: y =, rstd =.
#import common/columns
#import common/rows
struct Params { rows: u32, width: u32, eps: f32, shift: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Column>;        // (T, D)
@group(0) @binding(2) var<storage, read> w: array<Column>;        // (D)
@group(0) @binding(3) var<storage, read_write> y: array<Column>;  // (T, D)
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;  // (T)
#ifdef RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<Column>; // (T, D)
#endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_of(group, groups, lane);
    if row >= p.rows { return; }
    let columns = p.width / PER_COLUMN;
    let base = row * columns;
    var squares = Column();
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        let v = x[base + c];
        squares = fma(v, v, squares);
    }
    let r = 1.0 / sqrt(row_sum(total(squares), lane) / f32(p.width) + p.eps);
    for (var c = first_of(lane); c < columns; c += STRIDE) {
#ifdef RESIDUAL
        y[base + c] = residual[base + c] + x[base + c] * r * (w[c] + p.shift);
#else
        y[base + c] = x[base + c] * r * (w[c] + p.shift);
#endif
    }
    if first_of(lane) == 0u { rstd[row] = r; }
}
