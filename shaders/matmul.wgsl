// Matrix product without workgroup memory: every invocation keeps ROWS x 8 outputs in registers. The software
// tier's kernel.
//   NT: y(M,N) = alpha * x(M,K) w(N,K)^T  NN: y = alpha * x(M,K) w(K,N)  TN: y = alpha * x(K,M)^T w(K,N)
//   + bias(N) with BIAS, + residual(M,N) with RESIDUAL, + y with accumulate. w: common/weights.wgsl.
// Writes: y = or +=, as accumulate says. Every output sums over k in ascending order whatever ROWS is, so
// that a row's result does not depend on how many rows there are.
// VEC4: n, k (TN: m), all strides and starts are multiples of 4; loads are 16 bytes wide.
#import common/index
#import common/product
#import common/weights

#ifdef VEC4
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // (M, K), TN: (K, M)
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // (M, N)
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
#endif
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;           // (N)
#endif
#ifdef VEC4
#ifdef RESIDUAL
#ifdef BIAS
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;  // y's layout
#else
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;  // y's layout
#endif
#endif
#else
#ifdef RESIDUAL
#ifdef BIAS
@group(0) @binding(5) var<storage, read> residual: array<f32>;  // y's layout
#else
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // y's layout
#endif
#endif
#endif

#ifdef VEC4
fn x4(index: u32) -> vec4<f32> { return x[index / 4u]; }
#else
fn x1(index: u32) -> f32 { return x[index]; }
#endif

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks_n = (p.n + 7u) / 8u;
    let block = flat_group(group, groups) * 8u + lane;
    let row0 = (block / blocks_n) * ROWS;
    let col0 = (block % blocks_n) * 8u;
    if row0 >= p.m { return; }
    // Past the edge, rows and columns repeat the last valid one; what they compute is not written.
    var lo: array<vec4<f32>, ROWS>;
    var hi: array<vec4<f32>, ROWS>;
    for (var i = 0u; i < ROWS; i++) { lo[i] = vec4<f32>(); hi[i] = vec4<f32>(); }

#ifdef VEC4
#ifdef NT
    for (var kk = 0u; kk < p.k; kk += 4u) {
        var wv: array<vec4<f32>, 8>;
        for (var j = 0u; j < 8u; j++) { wv[j] = w4(w_row(min(col0 + j, p.n - 1u)) + kk); }
        for (var i = 0u; i < ROWS; i++) {
            let xv = x4(x_row(min(row0 + i, p.m - 1u)) + kk);
            var a = lo[i];
            var b = hi[i];
            a.x = fma(xv.w, wv[0].w, fma(xv.z, wv[0].z, fma(xv.y, wv[0].y, fma(xv.x, wv[0].x, a.x))));
            a.y = fma(xv.w, wv[1].w, fma(xv.z, wv[1].z, fma(xv.y, wv[1].y, fma(xv.x, wv[1].x, a.y))));
            a.z = fma(xv.w, wv[2].w, fma(xv.z, wv[2].z, fma(xv.y, wv[2].y, fma(xv.x, wv[2].x, a.z))));
            a.w = fma(xv.w, wv[3].w, fma(xv.z, wv[3].z, fma(xv.y, wv[3].y, fma(xv.x, wv[3].x, a.w))));
            b.x = fma(xv.w, wv[4].w, fma(xv.z, wv[4].z, fma(xv.y, wv[4].y, fma(xv.x, wv[4].x, b.x))));
            b.y = fma(xv.w, wv[5].w, fma(xv.z, wv[5].z, fma(xv.y, wv[5].y, fma(xv.x, wv[5].x, b.y))));
            b.z = fma(xv.w, wv[6].w, fma(xv.z, wv[6].z, fma(xv.y, wv[6].y, fma(xv.x, wv[6].x, b.z))));
            b.w = fma(xv.w, wv[7].w, fma(xv.z, wv[7].z, fma(xv.y, wv[7].y, fma(xv.x, wv[7].x, b.w))));
            lo[i] = a;
            hi[i] = b;
        }
    }
#endif
#ifdef NN
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk += 4u) {
        var wl: array<vec4<f32>, 4>;
        var wh: array<vec4<f32>, 4>;
        for (var j = 0u; j < 4u; j++) {
            wl[j] = w4(w_row(kk + j) + col0);
            wh[j] = w4(w_row(kk + j) + second);
        }
        for (var i = 0u; i < ROWS; i++) {
            let xv = x4(x_row(min(row0 + i, p.m - 1u)) + kk);
            lo[i] = fma(xv.wwww, wl[3], fma(xv.zzzz, wl[2], fma(xv.yyyy, wl[1], fma(xv.xxxx, wl[0], lo[i]))));
            hi[i] = fma(xv.wwww, wh[3], fma(xv.zzzz, wh[2], fma(xv.yyyy, wh[1], fma(xv.xxxx, wh[0], hi[i]))));
        }
    }
#endif
#ifdef TN
    let second = min(col0 + 4u, p.n - 4u);
    for (var kk = 0u; kk < p.k; kk++) {
        let wl = w4(w_row(kk) + col0);
        let wh = w4(w_row(kk) + second);
        for (var i = 0u; i < ROWS; i += 4u) {
            let xv = x4(x_row(kk) + min(row0 + i, p.m - 4u));
            lo[i] = fma(xv.xxxx, wl, lo[i]);
            hi[i] = fma(xv.xxxx, wh, hi[i]);
            lo[i + 1u] = fma(xv.yyyy, wl, lo[i + 1u]);
            hi[i + 1u] = fma(xv.yyyy, wh, hi[i + 1u]);
            lo[i + 2u] = fma(xv.zzzz, wl, lo[i + 2u]);
            hi[i + 2u] = fma(xv.zzzz, wh, hi[i + 2u]);
            lo[i + 3u] = fma(xv.wwww, wl, lo[i + 3u]);
            hi[i + 3u] = fma(xv.wwww, wh, hi[i + 3u]);
        }
    }
#endif
#else
    for (var kk = 0u; kk < p.k; kk++) {
        var wl: vec4<f32>;
        var wh: vec4<f32>;
        for (var j = 0u; j < 4u; j++) {
#ifdef NT
            wl[j] = w1(w_row(min(col0 + j, p.n - 1u)) + kk);
            wh[j] = w1(w_row(min(col0 + 4u + j, p.n - 1u)) + kk);
#else
            wl[j] = w1(w_row(kk) + min(col0 + j, p.n - 1u));
            wh[j] = w1(w_row(kk) + min(col0 + 4u + j, p.n - 1u));
#endif
        }
        for (var i = 0u; i < ROWS; i++) {
#ifdef TN
            let xs = vec4<f32>(x1(x_row(kk) + min(row0 + i, p.m - 1u)));
#else
            let xs = vec4<f32>(x1(x_row(min(row0 + i, p.m - 1u)) + kk));
#endif
            lo[i] = fma(xs, wl, lo[i]);
            hi[i] = fma(xs, wh, hi[i]);
        }
    }
#endif

    for (var i = 0u; i < ROWS; i++) {
        let row = row0 + i;
        if row >= p.m { return; }
        var a = p.alpha * lo[i];
        var b = p.alpha * hi[i];
#ifdef BIAS
        for (var j = 0u; j < 4u; j++) {
            a[j] += bias[min(col0 + j, p.n - 1u)];
            b[j] += bias[min(col0 + 4u + j, p.n - 1u)];
        }
#endif
#ifdef VEC4
        let at = (y_row(row) + col0) / 4u;
#ifdef RESIDUAL
        a += residual[at];
#endif
        if p.accumulate == 1u { a += y[at]; }
        y[at] = a;
        if col0 + 4u < p.n {
#ifdef RESIDUAL
            b += residual[at + 1u];
#endif
            if p.accumulate == 1u { b += y[at + 1u]; }
            y[at + 1u] = b;
        }
#else
        for (var j = 0u; j < 8u; j++) {
            if col0 + j < p.n {
                let at = y_row(row) + col0 + j;
                var value = select(b[j & 3u], a[j & 3u], j < 4u);
#ifdef RESIDUAL
                value += residual[at];
#endif
                if p.accumulate == 1u { value += y[at]; }
                y[at] = value;
            }
        }
#endif
    }
}
