// Quantised weights in the words of w, laid out as in src/gpu/blocks.rs: codes of 4 or 8 bits; starting at
// word p.w_scales, the scales, one entry for each block of 16 or 32 codes; with Q4K, Q5K and Q6K, starting at
// word p.w_supers, f16 factors on the scales, one entry for 256 codes.
// The values of weights are those of ggml's formats. Every product but the last is exact in f32, so results
// equal those of f32 weights bit for bit.

// The value of an f16. unpack2x16float may flush subnormal numbers to zero, and scales are often that small.
fn from_half(bits: u32) -> f32 {
    let mantissa = bits & 0x3ffu;
    let exponent = (bits >> 10u) & 31u;
    let normal = bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u));
    let value = select(normal, f32(mantissa) * 5.9604644775390625e-8, exponent == 0u);
    return select(value, -value, (bits & 0x8000u) != 0u);
}
fn halves(word: u32) -> vec2<f32> { return vec2<f32>(from_half(word & 0xffffu), from_half(word >> 16u)); }

// For the block of element `index`: the factor on its codes, and what is added to the product.
fn scales(index: u32) -> vec2<f32> {
#ifdef NF4
    return vec2<f32>(from_half((w[p.w_scales + index / 64u] >> (16u * (index / 32u & 1u))) & 0xffffu), 0.0);
#else
#ifdef Q6K
    let own = i32(w[p.w_scales + index / 64u] << (24u - 8u * (index / 16u & 3u))) >> 24u;
    return vec2<f32>(halves(w[p.w_supers + index / 256u]).x * f32(own), 0.0);
#else
#ifdef SUPER
    let own = w[p.w_scales + index / 64u] >> (16u * (index / 32u & 1u));
    return halves(w[p.w_supers + index / 256u]) * vec2<f32>(f32(own & 255u), -f32((own >> 8u) & 255u));
#else
    return halves(w[p.w_scales + index / 32u]);
#endif
#endif
#endif
}

#ifdef NF4
// The quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al., "QLoRA", 2305.14314, appendix
// E). They are selected bit by bit: a table with a variable index would be in memory, and reading it takes
// longer than the product.
fn either(a: f32, b: f32, second: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(a), vec4<f32>(b), second);
}
fn four_bits(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u);
    let b0 = (codes & vec4<u32>(1u)) != vec4<u32>(0u);
    let b1 = (codes & vec4<u32>(2u)) != vec4<u32>(0u);
    let b2 = (codes & vec4<u32>(4u)) != vec4<u32>(0u);
    let b3 = (codes & vec4<u32>(8u)) != vec4<u32>(0u);
    let q0 = select(either(-1.0, -0.6961928009986877, b0),
        either(-0.5250730514526367, -0.39491748809814453, b0), b1);
    let q1 = select(either(-0.28444138169288635, -0.18477343022823334, b0),
        either(-0.09105003625154495, 0.0, b0), b1);
    let q2 = select(either(0.07958029955625534, 0.16093020141124725, b0),
        either(0.24611230194568634, 0.33791524171829224, b0), b1);
    let q3 = select(either(0.44070982933044434, 0.5626170039176941, b0),
        either(0.7229568362236023, 1.0, b0), b1);
    return select(select(q0, q1, b2), select(q2, q3, b2), b3);
}
#else
fn four_bits(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
}
#endif

// Four codes from `index` on, a multiple of 4.
fn codes4(index: u32) -> vec4<f32> {
#ifdef BITS=4
    return four_bits(w[index / 8u] >> (4u * (index & 4u)));
#else
    return vec4<f32>((vec4<i32>(i32(w[index / 4u])) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
#endif
}

// Four weights from `index` on, a multiple of 4.
fn block4(index: u32) -> vec4<f32> {
    let s = scales(index);
    return codes4(index) * s.x + s.y;
}
