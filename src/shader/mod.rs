//! WGSL sources: preprocessing, and the list of compiled variants.

mod preprocess;

pub use preprocess::{SOURCES, Variant, parse, permutations, source};
