// A row of a matrix as columns of one element, or of four with VEC4, because loads cost the most.
#ifdef VEC4
alias Column = vec4<f32>;
const PER_COLUMN = 4u;
fn total(v: Column) -> f32 { return (v.x + v.y) + (v.z + v.w); }
#else
alias Column = f32;
const PER_COLUMN = 1u;
fn total(v: Column) -> f32 { return v; }
#endif
