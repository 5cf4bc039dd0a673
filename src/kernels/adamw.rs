//! AdamW with decoupled weight decay (Loshchilov & Hutter, 1711.05101), as `torch.optim.AdamW`.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["adamw"];
    vectors: u32, shrink: f32, beta1: f32, beta2: f32, step: f32, root: f32, eps: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Hyper-parameters of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The step's number, from 1.
    pub t: u64,
}

/// A step's constants, as the kernels take them.
pub(super) struct Constants {
    pub shrink: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub step: f32,
    pub root: f32,
    pub eps: f32,
}

impl Step {
    /// Bias corrections are computed in f64: 1 - 0.999^t loses half its digits in f32.
    pub(super) fn constants(&self) -> Constants {
        let t = self.t as f64;
        Constants {
            shrink: (1.0 - self.lr * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            step: (self.lr / (1.0 - self.beta1.powf(t))) as f32,
            root: (1.0 - self.beta2.powf(t)).sqrt() as f32,
            eps: self.eps as f32,
        }
    }
}

/// The tensors of a step, each `(count)`. Parameters and moments are updated in place; the gradient is not
/// changed.
pub struct State<'a> {
    /// Parameters.
    pub w: &'a Tensor,
    /// First moments.
    pub m: &'a Tensor,
    /// Second moments.
    pub v: &'a Tensor,
    /// Gradients.
    pub g: &'a Tensor,
}

/// One step on `count` elements. Gradients are multiplied by the scale in clip `(2)`: norm, scale. A scale
/// below 0 skips the step.
pub fn step(rec: &mut Recorder, step: Step, clip: &Tensor, state: State, count: usize) -> Result<()> {
    let State { w, m, v, g } = state;
    check("adamw", &[("clip", clip, 2), ("g", g, count), ("w", w, count), ("m", m, count), ("v", v, count)])?;
    let vectors = count.div_ceil(4);
    let Constants { shrink, beta1, beta2, step, root, eps } = step.constants();
    let params = Params { vectors: vectors as u32, shrink, beta1, beta2, step, root, eps };
    let shader = kernel(rec.gpu(), "adamw");
    rec.dispatch(&shader, &params, &[clip, g, w, m, v], groups_of_64(vectors), 14.0 * count as f64);
    Ok(())
}
