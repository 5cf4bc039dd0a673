// Work on the rows of a matrix. Portable: a workgroup owns a row; its invocations stride over the columns and
// reduce in a fixed order. SERIAL: an invocation owns a row and needs no barriers, which cost the most on
// software adapters.
// Return early only when `row` is out of range: `row` is the same for all invocations that meet at a barrier.
#import common/index
#ifdef SERIAL
const WORKGROUP = 8u;
const STRIDE = 1u;
fn row_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return flat_group(group, groups) * 8u + lane;
}
fn first_of(lane: u32) -> u32 { return 0u; }
fn row_sum(value: f32, lane: u32) -> f32 { return value; }
fn row_max(value: f32, lane: u32) -> f32 { return value; }
#else
const WORKGROUP = 64u;
const STRIDE = 64u;
fn row_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 { return flat_group(group, groups); }
fn first_of(lane: u32) -> u32 { return lane; }
#import common/reduce
fn row_sum(value: f32, lane: u32) -> f32 { return workgroup_sum(value, lane); }
fn row_max(value: f32, lane: u32) -> f32 { return workgroup_max(value, lane); }
#endif
