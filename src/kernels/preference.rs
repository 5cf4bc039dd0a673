//! The loss of each group and the coefficient of each token, from log-probabilities: thirteen methods in
//! seven formulas.

use super::{check, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

use crate::loss::{Formula, Terms};

params!(Params for ["preference"];
    groups: u32, formula: u32, relative: u32, per_token: u32,
    alpha: f32, beta: f32, gamma: f32, smoothing: f32,
    weight: f32, sft_weight: f32, kl: f32, divisor: f32, floor: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// The cases of `shaders/preference.wgsl`.
#[derive(Clone, Copy)]
enum Code {
    Mean,
    Unlikelihood,
    Logistic,
    Squared,
    Hinge,
    Odds,
    Kto,
}

impl Params {
    /// A formula's case and constants. The weight is 1 and all else 0 unless the formula sets it.
    pub(crate) fn of(formula: Formula) -> Self {
        let with = |code: Code| Self { formula: code as u32, weight: 1.0, ..bytemuck::Zeroable::zeroed() };
        let pair = |code: Code, beta: f64| Self { alpha: beta as f32, beta: beta as f32, ..with(code) };
        match formula {
            Formula::Sft => Self { weight: -1.0, ..with(Code::Mean) },
            Formula::Ga => with(Code::Mean),
            Formula::Ul => with(Code::Unlikelihood),
            Formula::Dpo { beta, label_smoothing } => {
                Self { smoothing: label_smoothing as f32, ..pair(Code::Logistic, beta) }
            }
            Formula::Ipo { beta } => pair(Code::Squared, beta),
            Formula::Hinge { beta } => Self { gamma: 1.0, ..pair(Code::Hinge, beta) },
            Formula::Slic { delta, sft_weight } => {
                Self { gamma: delta as f32, sft_weight: sft_weight as f32, ..pair(Code::Hinge, 1.0) }
            }
            Formula::Simpo { beta, gamma } => Self { gamma: gamma as f32, ..pair(Code::Logistic, beta) },
            Formula::Orpo { beta } => Self { sft_weight: 1.0, ..pair(Code::Odds, beta) },
            Formula::Kto { beta, desirable_weight, undesirable_weight } => Self {
                alpha: undesirable_weight as f32,
                weight: desirable_weight as f32,
                ..pair(Code::Kto, beta)
            },
            Formula::Npo { beta } => Self { weight: (2.0 / beta) as f32, ..pair(Code::Logistic, beta) },
            Formula::Simnpo { beta, gamma } => {
                Self { weight: (2.0 / beta) as f32, gamma: gamma as f32, ..pair(Code::Logistic, beta) }
            }
            Formula::D2o { alpha, beta } => Self { alpha: alpha as f32, ..pair(Code::Logistic, beta) },
        }
    }
}

/// The tensors of a batch's loss.
pub struct Batch<'a> {
    /// `(N, 2)`: first and end sequence of each group.
    pub groups: &'a Tensor,
    /// `(S, 2)`: first and end row of each sequence.
    pub rows: &'a Tensor,
    /// `(3, R)`: log-probability, log-sum-exp and entropy of each token; only the first is read here.
    pub stats: &'a Tensor,
    /// `(R)`: by what each token's log-probability is multiplied.
    pub weights: &'a Tensor,
    /// `(S)`: weighted sum of the log-probabilities under the sequence's reference; unused by methods without
    /// one.
    pub reference: &'a Tensor,
    /// `(N, 4)`, written: loss, margin, the anchors' reward, the negative's reward.
    pub outcome: &'a Tensor,
    /// `(R)`, written: dL/d(log-probability of the token).
    pub coefficient: &'a Tensor,
}

/// Numbers of groups, sequences and response tokens of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    /// G.
    pub groups: usize,
    /// S.
    pub sequences: usize,
    /// R.
    pub rows: usize,
}

/// Records the losses of a batch's groups; coefficients are divided by `divisor`, the number of groups in the
/// whole optimizer batch.
pub fn forward(
    rec: &mut Recorder,
    formula: Formula,
    batch: Batch,
    count: Count,
    terms: Terms,
    divisor: usize,
) -> Result<()> {
    let tensors = [
        ("groups", batch.groups, 2 * count.groups),
        ("rows", batch.rows, 2 * count.sequences),
        ("stats", batch.stats, 3 * count.rows),
        ("weights", batch.weights, count.rows),
        ("reference", batch.reference, count.sequences),
        ("outcome", batch.outcome, 4 * count.groups),
        ("coefficient", batch.coefficient, count.rows),
    ];
    check("preference", &tensors)?;
    let params = Params {
        groups: count.groups as u32,
        relative: formula.has_reference().into(),
        per_token: (terms.length_normalize || formula.is_per_token()).into(),
        kl: terms.kl as f32,
        divisor: divisor as f32,
        floor: match (formula, terms.negative_floor) {
            (Formula::D2o { .. }, Some(floor)) => -floor as f32,
            _ => f32::MIN,
        },
        ..Params::of(formula)
    };
    let shader = kernel(rec.gpu(), "preference");
    let bindings = tensors.map(|(_, tensor, _)| tensor);
    rec.dispatch(&shader, &params, &bindings, count.groups as u64, count.rows as f64);
    Ok(())
}
