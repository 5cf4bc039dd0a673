// A flat workgroup index over two dispatch dimensions: a count past 65,535 is spread over both.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + group.y * groups.x;
}
