// d_x = rstd * (v * dy - x * rstd^2 * mean(x * v * dy)) with v = w + shift. Writes: d_x =, or += with
// accumulate (the residual stream's gradient). With AGAIN y is computed again, as in rms_norm.wgsl: y =.
// dw is column_sum(dy, x, rstd).
#import common/columns
#import common/rows
struct Params { rows: u32, width: u32, accumulate: u32, shift: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Column>;         // (T, D)
@group(0) @binding(2) var<storage, read> w: array<Column>;         // (D)
@group(0) @binding(3) var<storage, read> rstd: array<f32>;         // (T)
@group(0) @binding(4) var<storage, read> dy: array<Column>;        // (T, D)
@group(0) @binding(5) var<storage, read_write> d_x: array<Column>;  // (T, D)
#ifdef AGAIN
@group(0) @binding(6) var<storage, read_write> y: array<Column>;   // (T, D)
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
    var dot = Column();
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        dot = fma(x[base + c] * (w[c] + p.shift), dy[base + c], dot);
    }
    let r = rstd[row];
    let mean = row_sum(total(dot), lane) / f32(p.width) * r * r;
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        var d = r * ((w[c] + p.shift) * dy[base + c] - x[base + c] * mean);
        if p.accumulate == 1u { d += d_x[base + c]; }
        d_x[base + c] = d;
#ifdef AGAIN
        y[base + c] = x[base + c] * r * (w[c] + p.shift);
#endif
    }
}
