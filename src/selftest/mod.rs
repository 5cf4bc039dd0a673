//! Checks every kernel, and a small model as a whole, against f64 references on the current adapter. `aweigh
//! selftest` and `tests/gpu.rs` run the same checks.
//!
//! One file per theme. A check records the kernel on several shapes and compares every element with
//! [`crate::reference`]. Outputs that a kernel overwrites are first filled with NaN, and outputs that it adds
//! to with known values. Inputs depend only on a seed, so they are the same on every machine.

mod adapters;
mod attention;
mod fixture;
mod loss;
mod matmul;
mod model;
mod norm;
mod optimizer;
mod pointwise;
mod report;
mod rows;
mod sample;

use std::future::Future;
use std::pin::Pin;

use crate::Error;
use crate::gpu::Gpu;
use crate::reference::compare;
pub use crate::reference::tolerance::{F16_PRODUCT, F32, Tolerance};
pub use report::{CheckReport, Report};

/// The number of shapes to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The first few shapes of each check.
    Quick,
    /// All shapes, and those that need many workgroups.
    Full,
}

impl Depth {
    /// The shapes to run: all, or the first three.
    fn of<T>(self, shapes: &[T]) -> &[T] {
        if self == Self::Full { shapes } else { &shapes[..shapes.len().min(3)] }
    }
}

/// Why a check failed: the shape, the element, the expected and the found value, or the device's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// `Ok` if all results agree with the reference.
pub type Outcome = Result<(), Failure>;

type Running<'g> = Pin<Box<dyn Future<Output = Outcome> + 'g>>;

/// A check of one kernel, or of one of its properties, on many shapes.
#[derive(Clone, Copy)]
pub struct Check {
    /// An identifier, unique among [`checks`].
    pub name: &'static str,
    run: for<'g> fn(&'g Gpu, Depth) -> Running<'g>,
}

impl Check {
    /// Runs the check on `gpu`.
    ///
    /// # Errors
    /// The first shape with a wrong result, with its worst element, or what the device reported.
    pub async fn run(&self, gpu: &Gpu, depth: Depth) -> Outcome {
        (self.run)(gpu, depth).await
    }
}

/// A [`Check`] from its name and an `async fn(&Gpu, Depth) -> Outcome`.
macro_rules! check {
    ($name:literal, $run:path) => {
        $crate::selftest::Check { name: $name, run: |gpu, depth| Box::pin($run(gpu, depth)) }
    };
}
use check;

/// All checks, kernels first. A new theme is a new file and a new line here, and its names go into
/// `tests/gpu.rs`.
pub fn checks() -> Vec<Check> {
    [
        matmul::checks(),
        adapters::checks(),
        attention::checks(),
        norm::checks(),
        pointwise::checks(),
        rows::checks(),
        loss::checks(),
        optimizer::checks(),
        sample::checks(),
        model::checks(),
    ]
    .concat()
}

/// Compares `found` with `expected` under [`F32`]; `what` names the tensor and the shape.
///
/// # Errors
/// `what`, then the worst element.
pub fn agree(what: impl std::fmt::Display, found: &[f32], expected: &[f64]) -> Outcome {
    compare::compare(found, expected, F32.abs, F32.eps)
        .map_err(|message| Failure(format!("{what}: {message}")))
}

/// Fails with `what` unless `found` equals `expected`, element by element.
fn equal<T: PartialEq + std::fmt::Debug>(
    what: impl std::fmt::Display,
    found: &[T],
    expected: &[T],
) -> Outcome {
    if found.len() != expected.len() {
        return Err(Failure(format!(
            "{what}: lengths differ: expected {}, found {}",
            expected.len(),
            found.len()
        )));
    }
    match found.iter().zip(expected).position(|(f, e)| f != e) {
        None => Ok(()),
        Some(i) => {
            Err(Failure(format!("{what}: index {i}: expected {:?}, found {:?}", expected[i], found[i])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = checks().iter().map(|check| check.name).collect();
        assert_eq!(names.len(), checks().len());
    }

    #[test]
    fn a_failure_names_the_shape_and_the_element() {
        let failure = agree("y of 1x2", &[1.0, 2.5], &[1.0, 2.0]).unwrap_err();
        assert!(failure.to_string().starts_with("y of 1x2: index 1: expected 2e0, found 2.5e0"), "{failure}");
        assert!(equal("ids", &[1u32, 2], &[1, 3]).unwrap_err().0.contains("index 1"));
    }
}
