//! From log-probs to losses and coefficients. Every method is a formula in one small kernel.

pub use crate::kernels::preference::Method;

use crate::Result;
use crate::gpu::Recorder;
use crate::kernels::preference::{self, Batch};
use crate::model::Workspace;

/// What a loss needs beside the log-probs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The formula.
    pub method: Method,
    /// Use mean log-probs per token instead of sums.
    pub length_normalize: bool,
}

impl Loss {
    /// Records the losses of the batch in `ws`, whose `sums` and `reference` are filled, into `outcome` and `coefficient`.
    /// `divisor` is the number of groups in the whole optimizer batch.
    pub fn record(&self, rec: &mut Recorder, ws: &Workspace, divisor: usize) -> Result<()> {
        let batch = Batch {
            groups: &ws.groups,
            rows: &ws.rows,
            policy: &ws.sums,
            reference: &ws.reference,
            outcome: &ws.outcome,
            coefficient: &ws.coefficient,
        };
        let size = (ws.batch().groups, ws.batch().sequences);
        preference::forward(rec, self.method, batch, size, self.length_normalize, divisor as f32)
    }
}
