// Sums and maxima over a workgroup of WORKGROUP invocations, in a fixed order. All invocations must call
// these functions, and all get the result. Control flow with further barriers may depend on it, because it is
// loaded with workgroupUniformLoad, the only function whose result browsers accept there.
// workgroupUniformLoad has a barrier before and after the load.
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn workgroup_sum(value: f32, lane: u32) -> f32 {
    reduce_scratch[lane] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        if lane < half {
            reduce_scratch[lane] += reduce_scratch[lane + half];
        }
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    reduce_scratch[lane] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        if lane < half {
            reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]);
        }
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}
