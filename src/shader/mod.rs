//! WGSL sources: preprocessing, and the list of compiled variants.

mod lanes;
mod preprocess;

pub use lanes::Lanes;
pub use preprocess::{SOURCES, Variant, parse, permutations, source};
