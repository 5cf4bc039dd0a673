// y = (x - mean) * rstd * w + b with rstd = 1 / sqrt(variance + eps) (Ba et al., "Layer Normalization",
// 1607.06450).
// Writes: y =, stats =.
#import common/columns
#import common/rows
struct Params { rows: u32, width: u32, eps: f32, first_group: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Column>;         // (T, D)
@group(0) @binding(2) var<storage, read> w: array<Column>;         // (D)
@group(0) @binding(3) var<storage, read> b: array<Column>;         // (D)
@group(0) @binding(4) var<storage, read_write> y: array<Column>;   // (T, D)
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;  // (2, T): rstd, mean

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
    var sum = Column();
    for (var c = first_of(lane); c < columns; c += STRIDE) { sum += x[base + c]; }
    let mean = row_sum(total(sum), lane) / f32(p.width);
    var squares = Column();
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        let d = x[base + c] - mean;
        squares = fma(d, d, squares);
    }
    let r = 1.0 / sqrt(row_sum(total(squares), lane) / f32(p.width) + p.eps);
    for (var c = first_of(lane); c < columns; c += STRIDE) {
        y[base + c] = (x[base + c] - mean) * r * w[c] + b[c];
    }
    if first_of(lane) == 0u {
        stats[row] = r;
        stats[p.rows + row] = mean;
    }
}
