// The last dispatch of a submit: raises the number of submits that ran, unless one before did not run.
// Writes: ran, in place.
struct Params { number: u32 }
@group(0) @binding(0) var<uniform> p: Params;                     // this submit's
@group(0) @binding(1) var<storage, read_write> ran: array<u32>;   // (1)

@compute @workgroup_size(1)
fn main() {
    if ran[0] + 1u == p.number { ran[0] = p.number; }
}
