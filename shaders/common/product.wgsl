// A matrix product's sizes and the places of its operands, in elements: row i of an operand starts at its
// `at` + i * its `stride`.
// w_scales, w_supers: see common/blocks.wgsl.
// TEXELS: x and w are in textures, where row i starts at i * x_pitch and i * w_pitch.
// adapters: how many low-rank adapters there are (common/adapters.wgsl). Each has in parts its first column
// of the layer's output, the column after its last one, its first rank, and where its matrix starts; in ranks
// its rank, in scales its factor. ranks.w is the stride of the inner activations, which start at element 0.
struct Params {
    m: u32, n: u32, k: u32, accumulate: u32, alpha: f32,
    x_at: u32, x_stride: u32, w_at: u32, w_stride: u32, y_at: u32, y_stride: u32, w_scales: u32,
    w_supers: u32, x_pitch: u32, w_pitch: u32, adapters: u32,
    parts: array<vec4<u32>, 3>, ranks: vec4<u32>, scales: vec4<f32>, first_group: u32,
}
#ifdef EACH
// One product for each adapter: p has the sizes and places of the workgroup's own.
@group(0) @binding(0) var<uniform> all: Params;
var<private> p: Params;
#else
@group(0) @binding(0) var<uniform> p: Params;
#endif

#ifdef TEXELS
fn x_row(i: u32) -> u32 { return i * p.x_pitch; }
fn w_row(i: u32) -> u32 { return i * p.w_pitch; }
#else
fn x_row(i: u32) -> u32 { return p.x_at + i * p.x_stride; }
fn w_row(i: u32) -> u32 { return p.w_at + i * p.w_stride; }
#endif
fn y_row(i: u32) -> u32 { return p.y_at + i * p.y_stride; }
