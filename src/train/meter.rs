//! What tells a run how bad an answer is.

use std::pin::Pin;

use crate::Result;
use crate::data::Prompt;
use crate::gpu::Gpu;

/// The scores of a meter, when the device has computed them.
pub type Scores<'a> = Pin<Box<dyn Future<Output = Result<Vec<f64>>> + 'a>>;

/// Tells how bad answers are. An answer that scores above one half is bad.
pub trait Meter: std::fmt::Debug + Send + Sync {
    /// The score of each answer to its prompt.
    ///
    /// # Errors
    /// Errors of the device, or of what the meter asks.
    fn scores<'a>(&'a self, gpu: &'a Gpu, answers: &'a [(&'a Prompt, &'a str)]) -> Scores<'a>;
}
