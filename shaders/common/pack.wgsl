// bf16 and f16 pairs in a u32, low half first. Both unpack exactly, so results equal those of f32 weights bit
// for bit.
fn unpack_pair(packed: u32) -> vec2<f32> {
#ifdef F16
    return unpack2x16float(packed);
#else
    return vec2<f32>(bitcast<f32>(packed << 16u), bitcast<f32>(packed & 0xffff0000u));
#endif
}

// Element `index` of a packed array whose word `index / 2` is `packed`.
fn unpack_one(packed: u32, index: u32) -> f32 {
    let pair = unpack_pair(packed);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

// Four neighbours from element `index` on, a multiple of 4, of which `words` holds the eight that it is in.
fn unpack_half(words: vec4<u32>, index: u32) -> vec4<f32> {
    let half = select(words.xy, words.zw, (index & 4u) == 4u);
    return vec4<f32>(unpack_pair(half.x), unpack_pair(half.y));
}
