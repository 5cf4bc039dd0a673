// out[r, :] = scale * table[index[first + r * stride], :]. Writes: out =, or += with accumulate. The table is
// f32, PACKED bf16 / F16, or in quantised blocks (QUANT). It may be a piece of a larger one: its `count` rows
// from row `row0` on. Rows of out that need other rows are not changed.
#import common/index
#import common/pack
struct Params {
    rows: u32, width: u32, stride: u32, first: u32, accumulate: u32, scale: f32, row0: u32, count: u32,
    w_scales: u32, w_supers: u32, first_group: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>;      // (first + R * stride)
#ifdef QUANT
@group(0) @binding(2) var<storage, read> w: array<u32>;          // (N, D) in blocks
#import common/blocks
#else
#ifdef PACKED
@group(0) @binding(2) var<storage, read> table: array<u32>;      // (N, D) in pairs
#else
@group(0) @binding(2) var<storage, read> table: array<f32>;      // (N, D)
#endif
#endif
@group(0) @binding(3) var<storage, read_write> out: array<f32>;  // (R, D)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * 64u + lane;
    if i >= p.rows * p.width { return; }
    let row = index[p.first + i / p.width * p.stride] - p.row0;
    // Rows before the piece wrap to large numbers.
    if row >= p.count { return; }
    let at = row * p.width + i % p.width;
#ifdef QUANT
    var value = p.scale * block4(at & 0xfffffffcu)[at & 3u];
#else
#ifdef PACKED
    var value = p.scale * unpack_one(table[at / 2u], at);
#else
    var value = p.scale * table[at];
#endif
#endif
    if p.accumulate == 1u { value += out[i]; }
    out[i] = value;
}
