// Matrix product in square tiles of workgroup memory, EDGE x EDGE outputs per invocation. The portable tier's
// kernel; the layouts, the packing and the meaning of every parameter are matmul.wgsl's. Writes: y = or +=,
// as accumulate says.
// VEC4 and HALF: common/tiles.wgsl; ADAPTERS and EACH: common/adapters.wgsl. Products of two f16 are exact
// in f32, and the order of the sums is that of f32 tiles.
#ifdef HALF
enable f16;
#endif
#import common/index
#import common/tiles

const SIDE = 16u;                // invocations along each side of a tile
const TILE = SIDE * EDGE;
#ifdef HALF
const FOURS = 1024u;
#else
const FOURS = 512u;
#endif
const DEPTH = 4u * FOURS / TILE;  // so that both operands' tiles fill 16 KiB
const QUADS = TILE / 4u;
var<workgroup> xs: array<Staged4, FOURS>;  // (DEPTH, QUADS): four neighbouring rows of x at one k
var<workgroup> ws: array<Staged4, FOURS>;  // (DEPTH, QUADS): four neighbouring columns of w at one k

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // These are the same for all invocations of a workgroup, and a checker sees that.
#ifdef EACH
    var tile = flat_group(group, groups);
    var own = all;
    own.m = 0u;
    for (var i = 0u; i < all.adapters; i++) {
        let next = of_adapter(i);
        let tiles = (next.m + TILE - 1u) / TILE * ((next.n + TILE - 1u) / TILE);
        if tile < tiles {
            own = next;
            break;
        }
        tile -= tiles;
    }
    p = own;
    let m = own.m;
    let n = own.n;
    let k = own.k;
#else
    let tile = flat_group(group, groups);
    let m = p.m;
    let n = p.n;
    let k = p.k;
#endif
    let tiles_n = (n + TILE - 1u) / TILE;
    let row0 = (tile / tiles_n) * TILE;
    let col0 = (tile % tiles_n) * TILE;
    // Surplus workgroups return as a whole, so the barriers below are reached by all.
    if row0 >= m { return; }
    let ty = lane / SIDE;
    let tx = lane % SIDE;
    var sums: array<vec4<f32>, EDGE * EDGE / 4u>;
#each I EDGE*EDGE/4
    sums[$I] = vec4<f32>();
#end
    for (var k0 = 0u; k0 < k; k0 += DEPTH) {
        // Half of the invocations load 4 x 4 blocks of x, the others of w. Neighbouring invocations read
        // neighbouring blocks along the operand's own rows.
        for (var own = lane % 128u; own < FOURS / 4u; own += 128u) {
            if lane < 128u {
#ifdef TN
                let quad = own % QUADS;
                let deep = own / QUADS * 4u;
                let row = row0 + quad * 4u;
#each I 4
                xs[(deep + $Iu) * QUADS + quad] = Staged4(
                    SCALE * x4(x_row(k0 + deep + $Iu) + row,
                        select(0u, inside(row, p.m), k0 + deep + $Iu < p.k)));
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
                xs[(deep + $Iu) * QUADS + quad] = Staged4(SCALE * vec4<f32>(r0[$I], r1[$I], r2[$I], r3[$I]));
#end
#endif
            } else {
#ifdef NT
                let quad = own / (DEPTH / 4u);
                let deep = own % (DEPTH / 4u) * 4u;
                let col = col0 + quad * 4u;
                let valid = inside(k0 + deep, p.k);
#each I 4
                let c$I = weights4(w_row(col + $Iu) + k0 + deep, select(0u, valid, col + $Iu < p.n));
#end
#each I 4
                ws[(deep + $Iu) * QUADS + quad] = Staged4(vec4<f32>(c0[$I], c1[$I], c2[$I], c3[$I]));
#end
#else
                let quad = own % QUADS;
                let deep = own / QUADS * 4u;
                let col = col0 + quad * 4u;
#each I 4
                ws[(deep + $Iu) * QUADS + quad] = Staged4(
                    weights4(w_row(k0 + deep + $Iu) + col,
                        select(0u, inside(col, p.n), k0 + deep + $Iu < p.k)));
#end
#endif
            }
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
#each G EDGE/4
            let a$G = vec4<f32>(xs[d * QUADS + ty + $Gu * SIDE]);
            let b$G = vec4<f32>(ws[d * QUADS + tx + $Gu * SIDE]);
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
