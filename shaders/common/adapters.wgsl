// Low-rank adapters of a layer (Hu et al., "LoRA", 2106.09685).
// ADAPTERS: they are added to a product's outputs, NT: low B^T, NN: low A.
// EACH: one product for each adapter in one dispatch, NN: dlow = scale * dy B, TN: dB += scale * dy^T low.
#ifdef ADAPTERS
@group(0) @binding(6) var<storage, read> low: array<vec4<f32>>;       // (M, ranks)
@group(0) @binding(7) var<storage, read> matrices: array<vec4<f32>>;  // NT: B (columns, rank), NN: (rank, N)

// What the adapters add to four neighbouring outputs. They belong to one adapter or to none.
fn adapted(row: u32, col: u32) -> vec4<f32> {
    for (var i = 0u; i < p.adapters; i++) {
        let part = p.parts[i];
        if col < part.x || col >= part.y { continue; }
        let rank = p.ranks[i];
        var sums = vec4<f32>();
        for (var r = 0u; r < rank; r += 4u) {
            let inner = low[(row * p.ranks.w + part.z + r) / 4u];
#ifdef NT
            let at = (part.w + (col - part.x) * rank + r) / 4u;
#each J 4
            let b$J = matrices[at + $Ju * rank / 4u];
#end
#each R 4
            sums = fma(vec4<f32>(inner[$R]), vec4<f32>(b0[$R], b1[$R], b2[$R], b3[$R]), sums);
#end
#else
#each R 4
            sums = fma(vec4<f32>(inner[$R]), matrices[(part.w + (r + $Ru) * p.n + col) / 4u], sums);
#end
#endif
        }
        return p.scales[i] * sums;
    }
    return vec4<f32>();
}
#endif
#ifdef EACH
// The sizes and places of an adapter's product.
fn of_adapter(i: u32) -> Params {
    let part = all.parts[i];
    var own = all;
    own.n = all.ranks[i];
    own.alpha = all.scales[i];
    own.x_at += part.x;
#ifdef NN
    own.k = part.y - part.x;
    own.w_at = part.w;
    own.w_stride = own.n;
    own.y_at += part.z;
#else
    own.m = part.y - part.x;
    own.w_at += part.z;
    own.y_at = part.w;
    own.y_stride = own.n;
#endif
    return own;
}
#endif
