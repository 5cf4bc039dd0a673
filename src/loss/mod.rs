//! From log-probs to losses and coefficients. Every method is a formula in one small kernel.

pub use crate::kernels::preference::Method;

use crate::Result;
use crate::gpu::Recorder;
use crate::kernels::preference::{self, Batch, Count, Terms};
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
    /// Records the losses of the batch in `ws`, whose `stats`, `sums` and `reference` are filled, into
    /// `outcome` and `coefficient`. `divisor` is the number of groups in the whole optimizer batch, `kl`
    /// KTO's estimate over it.
    pub fn record(&self, rec: &mut Recorder, ws: &Workspace, divisor: usize, kl: f64) -> Result<()> {
        let batch = Batch {
            groups: &ws.groups,
            rows: &ws.rows,
            stats: &ws.stats,
            policy: &ws.sums,
            reference: &ws.reference,
            outcome: &ws.outcome,
            coefficient: &ws.coefficient,
        };
        let (groups, sequences, rows) = (ws.batch().groups, ws.batch().sequences, ws.batch().rows);
        let count = Count { groups, sequences, rows };
        preference::forward(rec, self.method, batch, count, self.terms(kl), divisor)
    }

    /// What log-ratios are multiplied with to become rewards, at the most, and whether they are means over an
    /// answer's tokens.
    pub fn reward_scale(&self) -> (f64, bool) {
        let (weight, per_token) = match self.method {
            Method::D2o { alpha, beta } => (alpha.max(beta), false),
            Method::Dpo { beta, .. }
            | Method::Hinge { beta }
            | Method::Kto { beta, .. }
            | Method::Npo { beta } => (beta, false),
            Method::Ipo { beta }
            | Method::Simpo { beta, .. }
            | Method::Orpo { beta }
            | Method::Simnpo { beta, .. } => (beta, true),
            Method::Slic { .. } | Method::Ga | Method::Ul | Method::Sft => (1.0, false),
        };
        (weight, per_token || self.length_normalize)
    }

    /// What the formula is told beside its sequences.
    pub fn terms(&self, kl: f64) -> Terms {
        Terms { length_normalize: self.length_normalize, kl }
    }
}
