// A matrix product's weights: f32, pairs of bf16 or f16 (PACKED), or quantised blocks (QUANT).
#import common/pack
#ifdef QUANT
// (N, K), NN: (K, N), rows of whole blocks
@group(0) @binding(2) var<storage, read> w: array<u32>;
#import common/blocks
// Four neighbours from `index` on, a multiple of 4.
fn w4(index: u32) -> vec4<f32> { return block4(index); }
fn w1(index: u32) -> f32 { return block4(index & 0xfffffffcu)[index & 3u]; }
#else
// (N, K), NN and TN: (K, N); packed in pairs
#ifdef VEC4
#ifdef PACKED
#ifdef TEXELS
#operand 2 w words
fn w4(index: u32) -> vec4<f32> { return unpack_half(load_w(index / 8u), index); }
#else
@group(0) @binding(2) var<storage, read> w: array<vec2<u32>>;
fn w4(index: u32) -> vec4<f32> {
    let words = w[index / 4u];
    return vec4<f32>(unpack_pair(words.x), unpack_pair(words.y));
}
#endif
#else
#operand 2 w
fn w4(index: u32) -> vec4<f32> { return load_w(index / 4u); }
#endif
#else
#ifdef PACKED
@group(0) @binding(2) var<storage, read> w: array<u32>;
fn w1(index: u32) -> f32 { return unpack_one(w[index / 2u], index); }
#else
@group(0) @binding(2) var<storage, read> w: array<f32>;
fn w1(index: u32) -> f32 { return w[index]; }
#endif
#endif
#endif
