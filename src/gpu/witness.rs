//! An observer of dispatches as they run.

use super::{Binding, Gpu};
use crate::Result;

/// A dispatch that a [`Witness`] sees.
pub struct Seen<'a> {
    /// The kernel's variant.
    pub kernel: &'a str,
    /// Its parameter block.
    pub params: &'a [u8],
    /// The tensors bound to it.
    pub bindings: &'a [Binding<'a>],
    /// For each tensor, whether the kernel may write it.
    pub writes: &'a [bool],
    /// An estimate of the arithmetic operations.
    pub operations: f64,
}

/// An observer of dispatches, for [`Options::witness`](super::Options::witness).
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Whether the witness wants to see the next dispatch, of the variant `kernel`. If so, everything
    /// recorded before is submitted first.
    fn wants(&self, kernel: &str) -> bool;

    /// Observes a dispatch. Calling `run` runs it.
    ///
    /// # Errors
    /// When something is wrong with the dispatch. [`Gpu::check`] then fails with this error.
    fn watch(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut()) -> Result<()>;

    /// A sentence about what the witness has seen so far.
    fn report(&self) -> String;
}
