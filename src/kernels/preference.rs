//! The loss of each group and the coefficient of each sequence, from summed log-probabilities.
//!
//! D²O: Duan et al., 2403.03419. DPO: Rafailov et al., 2305.18290, with label smoothing for its conservative form.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::reference::preference as reference;
use crate::shader::kernel;

params!(Params for ["preference"];
    groups: u32, sequences: u32, method: u32, normalize: u32,
    alpha: f32, beta: f32, smoothing: f32, divisor: f32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// A training objective with its hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// − mean token log-probability of each sequence, averaged over the group's sequences.
    Sft,
    /// −log σ(β(r_w − r_l)); a group is [chosen, rejected].
    Dpo {
        /// Inverse temperature.
        beta: f32,
        /// ε of conservative DPO, 0 for the plain form.
        label_smoothing: f32,
    },
    /// −log σ(β/K Σ r_i − α r_l); a group is [anchors.., negative].
    D2o {
        /// Weight of the negative's log-ratio.
        alpha: f32,
        /// Weight of the anchors' mean log-ratio.
        beta: f32,
    },
}

impl From<Method> for reference::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Sft => Self::Sft,
            Method::Dpo { beta, label_smoothing } => {
                Self::Dpo { beta: beta.into(), label_smoothing: label_smoothing.into() }
            }
            Method::D2o { alpha, beta } => Self::D2o { alpha: alpha.into(), beta: beta.into() },
        }
    }
}

/// The tensors of a batch's loss.
pub struct Batch<'a> {
    /// `(G, 2)`: first and end sequence of each group.
    pub groups: &'a Tensor,
    /// `(S, 2)`: first and end row of each sequence.
    pub rows: &'a Tensor,
    /// `(2, S)`: summed log-probability and entropy under the policy.
    pub policy: &'a Tensor,
    /// `(S)`: summed log-probability under the sequence's reference; unused by SFT.
    pub reference: &'a Tensor,
    /// `(G, 4)`, written: loss, z, the anchors' reward, the negative's reward.
    pub outcome: &'a Tensor,
    /// `(S)`, written: dL/d(log-probability of one token).
    pub coefficient: &'a Tensor,
}

/// Records the losses of `group_count` groups with `sequences` sequences; coefficients are divided by `divisor`, the
/// number of groups in the whole optimizer batch. `normalize` averages log-probabilities over tokens instead of summing.
pub fn forward(
    rec: &mut Recorder,
    method: Method,
    batch: Batch,
    (group_count, sequences): (usize, usize),
    normalize: bool,
    divisor: f32,
) -> Result<()> {
    let tensors = [
        ("groups", batch.groups, 2 * group_count),
        ("rows", batch.rows, 2 * sequences),
        ("policy", batch.policy, 2 * sequences),
        ("reference", batch.reference, sequences),
        ("outcome", batch.outcome, 4 * group_count),
        ("coefficient", batch.coefficient, sequences),
    ];
    check("preference", &tensors)?;
    let (number, alpha, beta, smoothing) = match method {
        Method::Sft => (0, 0.0, 0.0, 0.0),
        Method::Dpo { beta, label_smoothing } => (1, beta, beta, label_smoothing),
        Method::D2o { alpha, beta } => (2, alpha, beta, 0.0),
    };
    let params = Params {
        groups: group_count as u32,
        sequences: sequences as u32,
        method: number,
        normalize: normalize as u32,
        alpha,
        beta,
        smoothing,
        divisor,
    };
    let shader = kernel(rec.gpu(), "preference");
    let bindings = tensors.map(|(_, tensor, _)| tensor);
    rec.dispatch(&shader, &params, &bindings, groups_of_64(group_count), sequences as f64);
    Ok(())
}
