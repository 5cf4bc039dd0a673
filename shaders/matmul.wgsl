// Matrix product without workgroup memory: every invocation keeps ROWS x 8 outputs in registers. The software
// tier's kernel.
//   NT: y(M,N) = alpha * x(M,K) w(N,K)^T  NN: y = alpha * x(M,K) w(K,N)  TN: y = alpha * x(K,M)^T w(K,N)
//   and then common/epilogue.wgsl. w: common/weights.wgsl.
// Writes: y = or +=, as accumulate says. Every output sums over k in ascending order for any ROWS, so
// that a row's result does not depend on the number of rows.
// VEC4: n, k (TN: m), all strides and starts are multiples of 4; loads are 16 bytes wide.
// TEXELS, only with VEC4: x and w are read through textures.
#import common/epilogue
#import common/index
#import common/product

#ifdef VEC4
alias Element = vec4<f32>;
#else
alias Element = f32;
#endif
#import common/weights
// x: (M, K), TN: (K, M)
#ifdef VEC4
#operand 1 x
fn x4(index: u32) -> vec4<f32> { return load_x(index / 4u); }
#else
@group(0) @binding(1) var<storage, read> x: array<Element>;
fn x1(index: u32) -> f32 { return x[index]; }
// The factor of w for a column of y and for kk. Past the edge it is that of the last column.
fn one(column: u32, kk: u32) -> f32 {
#ifdef NT
    return w1(w_row(min(column, p.n - 1u)) + kk);
#else
    return w1(w_row(kk) + min(column, p.n - 1u));
#endif
}
// No loop: FXC cannot compile a write to one component of a vector within the loop over k.
fn four(column: u32, kk: u32) -> vec4<f32> {
    return vec4<f32>(one(column, kk), one(column + 1u, kk), one(column + 2u, kk), one(column + 3u, kk));
}
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
    // Past the edge, rows and columns repeat the last valid one; their results are not written.
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
        let wl = four(col0, kk);
        let wh = four(col0 + 4u, kk);
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
        let a = add_bias(p.alpha * lo[i], col0);
        let b = add_bias(p.alpha * hi[i], col0 + 4u);
        let at = y_row(row) + col0;
#ifdef VEC4
        write_element(at / 4u, a);
        if col0 + 4u < p.n { write_element(at / 4u + 1u, b); }
#else
        for (var j = 0u; j < 8u; j++) {
            if col0 + j < p.n { write_element(at + j, select(b[j & 3u], a[j & 3u], j < 4u)); }
        }
#endif
    }
}
