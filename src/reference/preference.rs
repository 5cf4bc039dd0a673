//! The loss of a group and the coefficients of its tokens. The formulas in f64 are [`crate::loss::formula`]:
//! runs score held-out examples with them too. `tests/golden/losses.rs` compares them with PyTorch.

pub use crate::loss::formula::{Outcome, forward, mean};
