// norm = sqrt(sum of partials); scale = min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_;
// 1 when max_norm is 0.
// A norm that is NaN or infinite gives a scale of -1: the optimizer then skips the step.
// Writes: result = [norm, scale].
#import common/reduce
const WORKGROUP = 64u;
struct Params { partials: u32, max_norm: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;      // (partials)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;  // (2)

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.partials; i += WORKGROUP) { sum += partials[i]; }
    let norm = sqrt(workgroup_sum(sum, lane));
    if lane == 0u {
        result[0] = norm;
        let scale = select(1.0, min(1.0, p.max_norm / (norm + 1e-6)), p.max_norm > 0.0);
        // Tested by its bits, because a compiler may fold comparisons with NaN.
        result[1] = select(scale, -1.0, (bitcast<u32>(norm) & 0x7f800000u) == 0x7f800000u);
    }
}
