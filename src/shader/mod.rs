//! WGSL sources: preprocessing, the list of compiled variants, and pipelines made from them.

mod pipelines;
mod preprocess;

pub use pipelines::{kernel, parse};
pub use preprocess::{SOURCES, Variant, permutations, source};
