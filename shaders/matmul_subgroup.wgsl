// Matrix product for software adapters with subgroups of SG lanes, one subgroup a workgroup: the subgroup shares LOADS x SG rows
// of x, which its lanes load once and hand to each other, and every lane has 8 columns of its own. Loads are what costs there.
// The layouts, the packing, the order of the sums and the meaning of every parameter are matmul.wgsl's.
// Writes: y = or +=, as accumulate says.
// All leading dimensions are multiples of 4; with TN, n is.
#import common/index
#import common/pack

struct Params { m: u32, n: u32, k: u32, accumulate: u32, alpha: f32 }

const ROWS = LOADS * SG;
const QUADS = ROWS / 4u;
const DEPTH = 4u / LOADS;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // (M, K), TN: (K, M)
#ifdef PACKED
@group(0) @binding(2) var<storage, read> w: array<vec2<u32>>;        // (N, K), NN and TN: (K, N)
#else
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;        // (N, K), NN and TN: (K, N)
#endif
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // (M, N)
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;           // (N)
#endif

fn x4(index: u32) -> vec4<f32> { return x[index / 4u]; }
#ifdef PACKED
fn w4(index: u32) -> vec4<f32> {
    let words = w[index / 4u];
    return vec4<f32>(unpack_pair(words.x), unpack_pair(words.y));
}
#else
fn w4(index: u32) -> vec4<f32> { return w[index / 4u]; }
#endif

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let blocks_n = (p.n + 8u * SG - 1u) / (8u * SG);
    let block = flat_group(group, groups);
    let row0 = (block / blocks_n) * ROWS;
    // The same for all lanes: a subgroup stays or leaves as a whole.
    if row0 >= p.m { return; }
    let col0 = (block % blocks_n) * 8u * SG + lane * 8u;
    // Past the edge, rows and columns repeat the last valid one; what they compute is not written.
    var lo: array<vec4<f32>, ROWS>;
    var hi: array<vec4<f32>, ROWS>;
#each I LOADS*SG
    lo[$I] = vec4<f32>();
    hi[$I] = vec4<f32>();
#end

#ifdef NT
    // Two steps a turn: a turn of a loop costs a move of every sum. A step past the end multiplies by zero.
    for (var k0 = 0u; k0 < p.k; k0 += 8u) {
#each U 2
        {
            let inside = k0 + 4u * $Uu < p.k;
            let kk = min(k0 + 4u * $Uu, p.k - 4u);
#each J 8
            let c$J = w4(min(col0 + $Ju, p.n - 1u) * p.k + kk);
#end
#each L LOADS
            let x$L = select(vec4<f32>(), x4(min(row0 + $Lu * SG + lane, p.m - 1u) * p.k + kk), inside);
#each I SG
            {
                let v = subgroupBroadcast(x$L, $Iu);
                let i = $Lu * SG + $Iu;
                let a = lo[i];
                let b = hi[i];
                lo[i] = vec4<f32>(
                    fma(v.w, c0.w, fma(v.z, c0.z, fma(v.y, c0.y, fma(v.x, c0.x, a.x)))),
                    fma(v.w, c1.w, fma(v.z, c1.z, fma(v.y, c1.y, fma(v.x, c1.x, a.y)))),
                    fma(v.w, c2.w, fma(v.z, c2.z, fma(v.y, c2.y, fma(v.x, c2.x, a.z)))),
                    fma(v.w, c3.w, fma(v.z, c3.z, fma(v.y, c3.y, fma(v.x, c3.x, a.w)))),
                );
                hi[i] = vec4<f32>(
                    fma(v.w, c4.w, fma(v.z, c4.z, fma(v.y, c4.y, fma(v.x, c4.x, b.x)))),
                    fma(v.w, c5.w, fma(v.z, c5.z, fma(v.y, c5.y, fma(v.x, c5.x, b.y)))),
                    fma(v.w, c6.w, fma(v.z, c6.z, fma(v.y, c6.y, fma(v.x, c6.x, b.z)))),
                    fma(v.w, c7.w, fma(v.z, c7.z, fma(v.y, c7.y, fma(v.x, c7.x, b.w)))),
                );
            }
#end
#end
        }
#end
    }
#endif
#ifdef NN
    let first = min(col0, p.n - 4u);
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk += 4u) {
#each J 4
        let l$J = w4((kk + $Ju) * p.n + first);
        let h$J = w4((kk + $Ju) * p.n + second);
#end
#each L LOADS
        let x$L = x4(min(row0 + $Lu * SG + lane, p.m - 1u) * p.k + kk);
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
    // A vec4 of x holds four rows at one k: the subgroup's lanes cover its rows at 4 / LOADS values of k at once.
    let first = min(col0, p.n - 4u);
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk += 4u) {
#each S LOADS
        let k$S = kk + $Su * DEPTH;
        let own$S = k$S + lane / QUADS;
        let at$S = min(own$S, p.k - 1u) * p.m + min(row0 + (lane % QUADS) * 4u, p.m - 4u);
        let x$S = select(vec4<f32>(), x4(at$S), own$S < p.k);
#each D 4/LOADS
        {
            let l = w4(min(k$S + $Du, p.k - 1u) * p.n + first);
            let h = w4(min(k$S + $Du, p.k - 1u) * p.n + second);
#each Q LOADS*SG/4
            {
                let v = subgroupBroadcast(x$S, $Du * QUADS + $Qu);
                let i = 4u * $Qu;
                lo[i] = fma(v.xxxx, l, lo[i]);
                hi[i] = fma(v.xxxx, h, hi[i]);
                lo[i + 1u] = fma(v.yyyy, l, lo[i + 1u]);
                hi[i + 1u] = fma(v.yyyy, h, hi[i + 1u]);
                lo[i + 2u] = fma(v.zzzz, l, lo[i + 2u]);
                hi[i + 2u] = fma(v.zzzz, h, hi[i + 2u]);
                lo[i + 3u] = fma(v.wwww, l, lo[i + 3u]);
                hi[i + 3u] = fma(v.wwww, h, hi[i + 3u]);
            }
#end
        }
#end
#end
    }
#endif

#each I LOADS*SG
    if row0 + $Iu < p.m {
        var a = p.alpha * lo[$I];
        var b = p.alpha * hi[$I];
#ifdef BIAS
#each J 4
        a[$J] += bias[min(col0 + $Ju, p.n - 1u)];
        b[$J] += bias[min(col0 + 4u + $Ju, p.n - 1u)];
#end
#endif
        let at = ((row0 + $Iu) * p.n + col0) / 4u;
        if col0 < p.n {
            if p.accumulate == 1u { a += y[at]; }
            y[at] = a;
        }
        if col0 + 4u < p.n {
            if p.accumulate == 1u { b += y[at + 1u]; }
            y[at + 1u] = b;
        }
    }
#end
}
