//! Terminal output, progress display, and Ctrl-C.

pub mod interrupt;
pub mod memory;
pub mod output;
pub mod progress;
pub mod text;
