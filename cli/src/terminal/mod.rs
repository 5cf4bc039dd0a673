//! What people see, and what they press.

pub mod interrupt;
pub mod memory;
pub mod output;
pub mod progress;
pub mod text;
