// A flat workgroup index over two dispatch dimensions: a count past 65,535 is spread over both. A dispatch
// that would take too long is recorded as several (src/gpu/recorder.rs), each of which has its first
// workgroup's index.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
#ifdef EACH
    return all.first_group + group.x + group.y * groups.x;
#else
    return p.first_group + group.x + group.y * groups.x;
#endif
}
