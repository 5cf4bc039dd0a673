// Matrix product with few rows, as in decoding: y(M,N) = alpha * x(M,K) w(N,K)^T. Every weight is loaded once
// for ROWS rows of x.
// A workgroup computes 8 columns. Sixteen invocations share the sum of a column: each takes every sixteenth
// vec4 of k, so that a row of weights is read in whole cache lines. Then their parts are added in order. The
// sum of an output does not depend on ROWS or M.
// The packing and the meaning of every parameter are matmul.wgsl's. Writes: y = or +=, as accumulate says.
// k, the strides and the starts of x and w are multiples of 4.
#import common/epilogue
#import common/index
#import common/product
#import common/weights

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;   // (M, K)
alias Element = f32;

const LANES = 16u;              // invocations that share a sum
const COLUMNS = 8u;             // columns of a workgroup, two for each LANES invocations
const OUTPUTS = COLUMNS * ROWS;
var<workgroup> parts: array<f32, OUTPUTS * LANES>;  // (COLUMNS, ROWS, LANES)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks_n = (p.n + COLUMNS - 1u) / COLUMNS;
    let block = flat_group(group, groups);
    let row0 = (block / blocks_n) * ROWS;
    // Surplus workgroups return as a whole, so the barrier below is reached by all.
    if row0 >= p.m { return; }
    let col0 = (block % blocks_n) * COLUMNS;
    let own = lane / LANES * 2u;
    // Past the edge, rows and columns repeat the last valid one; their results are not written.
    let first = w_row(min(col0 + own, p.n - 1u));
    let second = w_row(min(col0 + own + 1u, p.n - 1u));
    var a: array<vec4<f32>, ROWS>;
    var b: array<vec4<f32>, ROWS>;
#each I ROWS
    a[$I] = vec4<f32>();
    b[$I] = vec4<f32>();
    let x$I = x_row(min(row0 + $Iu, p.m - 1u));
#end
    for (var k = lane % LANES * 4u; k < p.k; k += LANES * 4u) {
        let wa = w4(first + k);
        let wb = w4(second + k);
#each I ROWS
        {
            let v = x[(x$I + k) / 4u];
            a[$I] = fma(v, wa, a[$I]);
            b[$I] = fma(v, wb, b[$I]);
        }
#end
    }
#each I ROWS
    parts[(own * ROWS + $Iu) * LANES + lane % LANES] = (a[$I].x + a[$I].y) + (a[$I].z + a[$I].w);
    parts[((own + 1u) * ROWS + $Iu) * LANES + lane % LANES] = (b[$I].x + b[$I].y) + (b[$I].z + b[$I].w);
#end
    workgroupBarrier();
    for (var output = lane; output < OUTPUTS; output += 64u) {
        let row = row0 + output % ROWS;
        let col = col0 + output / ROWS;
        if row < p.m && col < p.n {
            var sum = 0.0;
            for (var i = 0u; i < LANES; i++) { sum += parts[output * LANES + i]; }
            write_element(y_row(row) + col, add_bias(vec4<f32>(p.alpha * sum), col).x);
        }
    }
}
