// Matrix product with cooperative matrices, which a subgroup stores and multiplies as a whole: MAT16, of 16 x
// 16 elements, or MAT8.
// Four subgroups of SG lanes compute a square tile, each EDGE x EDGE matrices of it. Tiles of the operands go
// through workgroup memory, where edges are filled with zeros and weights are unpacked. The results go
// through it too, for the bounds checks and the epilogue.
// The layouts, the packing and the meaning of every parameter are matmul.wgsl's. Writes: y = or +=, as
// accumulate says.
// VEC4 and HALF: common/tiles.wgsl. With HALF the matrices of x and w are f16, without it f32; the sums are
// f32.
#ifdef HALF
enable f16;
#endif
enable wgpu_cooperative_matrix;
#import common/index
#import common/tiles

#ifdef MAT16
const SIZE = 16u;
alias MatrixA = coop_mat16x16<Staged, A>;
alias MatrixB = coop_mat16x16<Staged, B>;
alias Sums = coop_mat16x16<f32, C>;
#else
const SIZE = 8u;
alias MatrixA = coop_mat8x8<Staged, A>;
alias MatrixB = coop_mat8x8<Staged, B>;
alias Sums = coop_mat8x8<f32, C>;
#endif

const PARTS = 4u;  // parts of a tile, two by two: one for each subgroup
const THREADS = PARTS * SG;
const BLOCK = EDGE * SIZE;
const TILE = 2u * BLOCK;
// Rows of staged tiles are padded by 16 bytes, the alignment that loads of matrices need. Without padding,
// rows would be in the same memory banks.
#ifdef HALF
const STAGED = 2048u;
const PAD = 8u;
#else
const STAGED = 1024u;
const PAD = 4u;
#endif
const DEPTH = STAGED / TILE;
const FOURS = STAGED / 4u;
// Tiles have the layout of their operands, so that threads read and write along rows.
#ifdef TN
const X_STRIDE = TILE + PAD;
const X_LENGTH = DEPTH * X_STRIDE;
#else
const X_STRIDE = DEPTH + PAD;
const X_LENGTH = TILE * X_STRIDE;
#endif
#ifdef NT
const W_STRIDE = DEPTH + PAD;
const W_LENGTH = TILE * W_STRIDE;
#else
const W_STRIDE = TILE + PAD;
const W_LENGTH = DEPTH * W_STRIDE;
#endif
var<workgroup> xs: array<Staged, X_LENGTH>;  // (TILE, DEPTH), TN: (DEPTH, TILE)
var<workgroup> ws: array<Staged, W_LENGTH>;  // NT: (TILE, DEPTH), NN and TN: (DEPTH, TILE)
const AREA = SIZE * SIZE;
var<workgroup> results: array<f32, PARTS * AREA>;  // (PARTS, SIZE, SIZE)

fn stage_x(row0: u32, k0: u32, lane: u32) {
    for (var four = lane; four < FOURS; four += THREADS) {
#ifdef TN
        let k = k0 + four / (TILE / 4u);
        let row = row0 + four % (TILE / 4u) * 4u;
        let found = Staged4(SCALE * x4(x_row(k) + row, select(0u, inside(row, p.m), k < p.k)));
        let at = (k - k0) * X_STRIDE + row - row0;
#else
        let row = row0 + four / (DEPTH / 4u);
        let k = k0 + four % (DEPTH / 4u) * 4u;
        let found = Staged4(SCALE * x4(x_row(row) + k, select(0u, inside(k, p.k), row < p.m)));
        let at = (row - row0) * X_STRIDE + k - k0;
#endif
#each I 4
        xs[at + $Iu] = found[$I];
#end
    }
}

fn stage_w(col0: u32, k0: u32, lane: u32) {
    for (var four = lane; four < FOURS; four += THREADS) {
#ifdef NT
        let col = col0 + four / (DEPTH / 4u);
        let k = k0 + four % (DEPTH / 4u) * 4u;
        let found = Staged4(weights4(w_row(col) + k, select(0u, inside(k, p.k), col < p.n)));
        let at = (col - col0) * W_STRIDE + k - k0;
#else
        let k = k0 + four / (TILE / 4u);
        let col = col0 + four % (TILE / 4u) * 4u;
        let found = Staged4(weights4(w_row(k) + col, select(0u, inside(col, p.n), k < p.k)));
        let at = (k - k0) * W_STRIDE + col - col0;
#endif
#each I 4
        ws[at + $Iu] = found[$I];
#end
    }
}

// Writes one matrix of each of the `count` parts from `first` on: the matrix that is at (row0, col0) in the
// tile's first part.
fn write_parts(row0: u32, col0: u32, first: u32, count: u32, lane: u32) {
    for (var four = lane; four < count * (AREA / 4u); four += THREADS) {
        let part = first + four / (AREA / 4u);
        let row = row0 + part / 2u * BLOCK + four % (AREA / 4u) / (SIZE / 4u);
        let col = col0 + part % 2u * BLOCK + four % (SIZE / 4u) * 4u;
        let at = four * 4u;
        write(row, col, vec4<f32>(results[at], results[at + 1u], results[at + 2u], results[at + 3u]));
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let tiles_n = (p.n + TILE - 1u) / TILE;
    let tile = flat_group(group, groups);
    let row0 = (tile / tiles_n) * TILE;
    let col0 = (tile % tiles_n) * TILE;
    // Surplus workgroups have no parts. They must not return: naga treats every return as
    // non-uniform control flow.
    let parts = select(0u, PARTS, row0 < p.m);
    // If the driver chose larger subgroups than SG, there are fewer of them, and each computes more than
    // one part in turn.
    let count = min(subgroups, PARTS);
    for (var first = 0u; first < parts; first += count) {
        let own = min(subgroup, count - 1u);
        let part = min(first + own, PARTS - 1u);
        let row = part / 2u * BLOCK;
        let col = part % 2u * BLOCK;
#each I EDGE
#each J EDGE
        var c$I_$J = Sums();
#end
#end
        for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
            stage_x(row0, k0, lane);
            stage_w(col0, k0, lane);
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d += SIZE) {
#each I EDGE
#ifdef TN
                let a$I = coopLoad<MatrixA>(&xs[d * X_STRIDE + row + $Iu * SIZE], X_STRIDE);
#else
                let a$I = coopLoadT<MatrixA>(&xs[(row + $Iu * SIZE) * X_STRIDE + d], X_STRIDE);
#endif
#end
#each J EDGE
#ifdef NT
                let b$J = coopLoad<MatrixB>(&ws[(col + $Ju * SIZE) * W_STRIDE + d], W_STRIDE);
#else
                let b$J = coopLoadT<MatrixB>(&ws[d * W_STRIDE + col + $Ju * SIZE], W_STRIDE);
#endif
#each I EDGE
                c$I_$J = coopMultiplyAdd(a$I, b$J, c$I_$J);
#end
#end
            }
            workgroupBarrier();
        }
#each I EDGE
#each J EDGE
        coopStoreT(c$I_$J, &results[own * AREA], SIZE);
        workgroupBarrier();
        write_parts(row0 + $Iu * SIZE, col0 + $Ju * SIZE, first, min(count, PARTS - first), lane);
        workgroupBarrier();
#end
#end
    }
}
