//! WGSL sources: preprocessing, and the list of compiled variants.

mod browser;
mod lanes;
mod preprocess;

pub use browser::browser_text;
pub use lanes::Lanes;
pub use preprocess::{SOURCES, Variant, parse, permutations, source};
