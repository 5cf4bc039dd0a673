//! Text for display.

use std::fmt::Display;
use std::io::{self, Write};

pub use aweigh_app::text::{bytes, count, table};

/// Prints a line to stderr. A closed stderr is ignored.
pub fn to_stderr(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
