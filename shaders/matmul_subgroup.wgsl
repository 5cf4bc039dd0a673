// Matrix product for software adapters with subgroups of SG lanes, one subgroup per workgroup. Loads cost the
// most there: the lanes load ROWS rows of x once and broadcast them to each other, and every lane has 8
// columns of its own.
// NT takes STEPS steps of four k per iteration.
// The layouts, the packing, the order of the sums and the meaning of every parameter are matmul.wgsl's.
// Writes: y = or +=, as accumulate says.
// n, k (TN: m), all strides and starts are multiples of 4, those of packed and quantised weights of 8.
// TEXELS: x and w are read through textures.
#import common/epilogue
#import common/index
#import common/pack
#import common/product

const QUADS = ROWS / 4u;
const DEPTH = 4u * SG / ROWS;
// How many neighbours of w are taken together.
#ifdef QUANT
const EDGE = 8u;
#else
#ifdef PACKED
const EDGE = 8u;
#else
const EDGE = 4u;
#endif
#endif

// x: (M, K), TN: (K, M)
#operand 1 x
fn x4(index: u32) -> vec4<f32> { return load_x(index / 4u); }
// w: (N, K), NN and TN: (K, N)
#ifdef QUANT
@group(0) @binding(2) var<storage, read> w: array<u32>;  // rows of whole blocks
#import common/blocks
fn w4(index: u32) -> vec4<f32> { return block4(index); }
#else
#ifdef PACKED
#operand 2 w words
fn w4(index: u32) -> vec4<f32> { return unpack_half(load_w(index / 8u), index); }
#else
#operand 2 w
fn w4(index: u32) -> vec4<f32> { return load_w(index / 4u); }
#endif
#endif
alias Element = vec4<f32>;

// Eight weights, four from `index` on and four from `second` on. Packed or quantised weights are eight
// neighbours from `index` on. Packed they are one load, which costs what a load of four f32 costs.
struct Eight { lo: vec4<f32>, hi: vec4<f32> }
fn w8(index: u32, second: u32) -> Eight {
#ifdef QUANT
    let s = scales(index);
    return Eight(codes4(index) * s.x + s.y, codes4(index + 4u) * s.x + s.y);
#else
#ifdef PACKED
    let words = load_w(index / 8u);
    return Eight(vec4<f32>(unpack_pair(words.x), unpack_pair(words.y)),
        vec4<f32>(unpack_pair(words.z), unpack_pair(words.w)));
#else
    return Eight(w4(index), w4(second));
#endif
#endif
}

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let blocks_n = (p.n + 8u * SG - 1u) / (8u * SG);
    let block = flat_group(group, groups);
    let row0 = (block / blocks_n) * ROWS;
    // The same for all lanes: a subgroup returns as a whole or not at all.
    if row0 >= p.m { return; }
    let col0 = (block % blocks_n) * 8u * SG + lane * 8u;
    // Past the edge, rows and columns repeat the last valid one; their results are not written.
    var lo: array<vec4<f32>, ROWS>;
    var hi: array<vec4<f32>, ROWS>;
#each I ROWS
    lo[$I] = vec4<f32>();
    hi[$I] = vec4<f32>();
#end

#ifdef NT
    // Every iteration moves all sums, and unrolled code that is too long does not fit in the instruction
    // cache. So an iteration takes one step of four k if there are many rows, and two steps if there are few.
    // A second step past the end multiplies by zero.
    let mine = lane % (SG / STEPS);
#ifdef STEPS=1
    for (var k0 = 0u; k0 < p.k; k0 += 4u) {
#each J 8
        let c$J = w4(w_row(min(col0 + $Ju, p.n - 1u)) + k0);
#end
#else
    for (var k0 = 0u; k0 < p.k; k0 += 8u) {
        let k1 = min(k0 + 4u, p.k - 4u);
#each J 8
        let w$J = w8(w_row(min(col0 + $Ju, p.n - 1u)) + k0, w_row(min(col0 + $Ju, p.n - 1u)) + k1);
        let c$J = w$J.lo;
        let d$J = w$J.hi;
#end
        // Half of the lanes load the first step of their row, half the second.
        let own = k0 + lane / (SG / STEPS) * 4u;
#endif
#each L ROWS*STEPS/SG
        let source$L = x_row(min(row0 + $Lu * (SG / STEPS) + mine, p.m - 1u));
#ifdef STEPS=1
        let x$L = x4(source$L + k0);
#else
        let x$L = select(vec4<f32>(), x4(source$L + min(own, k1)), own < p.k);
#endif
#each I SG/STEPS
        {
            let v = subgroupBroadcast(x$L, $Iu);
            var a = lo[$Lu * (SG / STEPS) + $Iu];
            var b = hi[$Lu * (SG / STEPS) + $Iu];
            a = vec4<f32>(
                fma(v.w, c0.w, fma(v.z, c0.z, fma(v.y, c0.y, fma(v.x, c0.x, a.x)))),
                fma(v.w, c1.w, fma(v.z, c1.z, fma(v.y, c1.y, fma(v.x, c1.x, a.y)))),
                fma(v.w, c2.w, fma(v.z, c2.z, fma(v.y, c2.y, fma(v.x, c2.x, a.z)))),
                fma(v.w, c3.w, fma(v.z, c3.z, fma(v.y, c3.y, fma(v.x, c3.x, a.w)))),
            );
            b = vec4<f32>(
                fma(v.w, c4.w, fma(v.z, c4.z, fma(v.y, c4.y, fma(v.x, c4.x, b.x)))),
                fma(v.w, c5.w, fma(v.z, c5.z, fma(v.y, c5.y, fma(v.x, c5.x, b.y)))),
                fma(v.w, c6.w, fma(v.z, c6.z, fma(v.y, c6.y, fma(v.x, c6.x, b.z)))),
                fma(v.w, c7.w, fma(v.z, c7.z, fma(v.y, c7.y, fma(v.x, c7.x, b.w)))),
            );
#ifndef STEPS=1
            let u = subgroupBroadcast(x$L, SG / 2u + $Iu);
            a = vec4<f32>(
                fma(u.w, d0.w, fma(u.z, d0.z, fma(u.y, d0.y, fma(u.x, d0.x, a.x)))),
                fma(u.w, d1.w, fma(u.z, d1.z, fma(u.y, d1.y, fma(u.x, d1.x, a.y)))),
                fma(u.w, d2.w, fma(u.z, d2.z, fma(u.y, d2.y, fma(u.x, d2.x, a.z)))),
                fma(u.w, d3.w, fma(u.z, d3.z, fma(u.y, d3.y, fma(u.x, d3.x, a.w)))),
            );
            b = vec4<f32>(
                fma(u.w, d4.w, fma(u.z, d4.z, fma(u.y, d4.y, fma(u.x, d4.x, b.x)))),
                fma(u.w, d5.w, fma(u.z, d5.z, fma(u.y, d5.y, fma(u.x, d5.x, b.y)))),
                fma(u.w, d6.w, fma(u.z, d6.z, fma(u.y, d6.y, fma(u.x, d6.x, b.z)))),
                fma(u.w, d7.w, fma(u.z, d7.z, fma(u.y, d7.y, fma(u.x, d7.x, b.w)))),
            );
#endif
            lo[$Lu * (SG / STEPS) + $Iu] = a;
            hi[$Lu * (SG / STEPS) + $Iu] = b;
        }
#end
#end
    }
#endif
#ifdef NN
    let first = min(col0, p.n - EDGE);
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk += 4u) {
#each J 4
        let w$J = w8(w_row(kk + $Ju) + first, w_row(kk + $Ju) + second);
        let l$J = w$J.lo;
        let h$J = w$J.hi;
#end
#each L ROWS/SG
        let x$L = x4(x_row(min(row0 + $Lu * SG + lane, p.m - 1u)) + kk);
#each I SG
        {
            let v = subgroupBroadcast(x$L, $Iu);
            let i = $Lu * SG + $Iu;
            lo[i] = fma(v.wwww, l3, fma(v.zzzz, l2, fma(v.yyyy, l1, fma(v.xxxx, l0, lo[i]))));
            hi[i] = fma(v.wwww, h3, fma(v.zzzz, h2, fma(v.yyyy, h1, fma(v.xxxx, h0, hi[i]))));
        }
#end
#end
    }
#endif
#ifdef TN
    // A vec4 of x holds four rows at one k: the subgroup's lanes cover its rows at DEPTH values of k at once.
    // An iteration takes four values of k, so that each sum is read and written once for four products.
    let first = min(col0, p.n - EDGE);
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk += 4u) {
#each S ROWS/SG
        let own$S = kk + $Su * DEPTH + lane / QUADS;
        let at$S = x_row(min(own$S, p.k - 1u)) + min(row0 + (lane % QUADS) * 4u, p.m - 4u);
        let x$S = select(vec4<f32>(), x4(at$S), own$S < p.k);
#each D 4*SG/ROWS
        let w$S_$D = w_row(min(kk + $Su * DEPTH + $Du, p.k - 1u));
        let e$S_$D = w8(w$S_$D + first, w$S_$D + second);
        let l$S_$D = e$S_$D.lo;
        let h$S_$D = e$S_$D.hi;
#end
#end
#each Q ROWS/4
        {
#each R 4
            var a$R = lo[4u * $Qu + $Ru];
            var b$R = hi[4u * $Qu + $Ru];
#end
#each S ROWS/SG
#each D 4*SG/ROWS
            {
                let v = subgroupBroadcast(x$S, $Du * QUADS + $Qu);
#each R 4
                a$R = fma(vec4<f32>(v[$R]), l$S_$D, a$R);
                b$R = fma(vec4<f32>(v[$R]), h$S_$D, b$R);
#end
            }
#end
#end
#each R 4
            lo[4u * $Qu + $Ru] = a$R;
            hi[4u * $Qu + $Ru] = b$R;
#end
        }
#end
    }
#endif

#each I ROWS
    if row0 + $Iu < p.m {
        let at = (y_row(row0 + $Iu) + col0) / 4u;
        if col0 < p.n { write_element(at, add_bias(p.alpha * lo[$I], col0)); }
        if col0 + 4u < p.n { write_element(at + 1u, add_bias(p.alpha * hi[$I], col0 + 4u)); }
    }
#end
}
