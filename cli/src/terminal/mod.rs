//! What people see, and what they press.

pub mod interrupt;
pub mod output;
pub mod progress;
