// With n = (x - mean) * rstd: d_x = rstd * (w * dy - mean(w * dy) - n * mean(n * w * dy)). Writes: d_x =,
// or += with accumulate. With AGAIN y is computed again, as in layer_norm.wgsl: y =.
// dw is column_sum(dy, x, stats), db is column_sum(dy).
#import common/columns
#import common/rows
struct Params { rows: u32, width: u32, accumulate: u32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Column>;         // (T, D)
@group(0) @binding(2) var<storage, read> w: array<Column>;         // (D)
@group(0) @binding(3) var<storage, read> stats: array<f32>;        // (2, T): rstd, mean
@group(0) @binding(4) var<storage, read> dy: array<Column>;        // (T, D)
@group(0) @binding(5) var<storage, read_write> d_x: array<Column>;  // (T, D)
#ifdef AGAIN
@group(0) @binding(6) var<storage, read_write> y: array<Column>;   // (T, D)
@group(0) @binding(7) var<storage, read> b: array<Column>;         // (D)
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
    let r = stats[row];
    let mean = stats[p.rows + row];
    var plain = Column();
    var along = Column();
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        let d = w[c] * dy[base + c];
        plain += d;
        along = fma((x[base + c] - mean) * r, d, along);
    }
    let mean_d = row_sum(total(plain), lane) / f32(p.width);
    let mean_along = row_sum(total(along), lane) / f32(p.width);
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        var d = r * (w[c] * dy[base + c] - mean_d - (x[base + c] - mean) * r * mean_along);
        if p.accumulate == 1u { d += d_x[base + c]; }
        d_x[base + c] = d;
#ifdef AGAIN
        y[base + c] = (x[base + c] - mean) * r * w[c] + b[c];
#endif
    }
}
