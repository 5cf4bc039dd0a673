// Counter-based random numbers: pcg4d of Jarzynski & Olano, "Hash Functions for GPU Rendering" (JCGT 2020).
fn pcg4d(counter: vec4<u32>) -> vec4<u32> {
    var v = counter * 1664525u + 1013904223u;
    v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
    v = v ^ (v >> vec4<u32>(16u));
    v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
    return v;
}

// Uniform in [0, 1) from 24 bits.
fn uniform_from(bits: u32) -> f32 {
    return f32(bits >> 8u) * 0x1p-24;
}
