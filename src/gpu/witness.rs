//! Somebody who looks at dispatches as they run.

use super::{Binding, Gpu};
use crate::Result;

/// A dispatch.
pub struct Seen<'a> {
    /// The kernel's variant.
    pub kernel: &'a str,
    /// Its parameter block.
    pub params: &'a [u8],
    /// Its tensors.
    pub bindings: &'a [Binding<'a>],
    /// Of each, whether the kernel may write it.
    pub writes: &'a [bool],
}

/// What [`Options::witness`](super::Options::witness) takes.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Whether it wants to see the next dispatch, of this variant. What was recorded before is submitted
    /// then.
    fn wants(&self, kernel: &str) -> bool;

    /// Sees a dispatch, which `run` runs.
    ///
    /// # Errors
    /// What is wrong with it: [`Gpu::check`] fails with it.
    fn watch(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut()) -> Result<()>;

    /// What it has seen so far, in a sentence.
    fn report(&self) -> String;
}
