//! AdamW over the arenas, global-norm clipping, learning-rate schedules.

mod schedule;

pub use schedule::{LrScheduler, Schedule};

use crate::Result;
use crate::gpu::{DType, Memory, Purpose, Recorder, Tensor};
use crate::kernels::adamw::{self, Step};
use crate::kernels::adamw_8bit;
use crate::kernels::sum_squares::{self, PARTIALS};
use crate::nn::{Arenas, Layout};

/// AdamW's settings that are constant during a run, with Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the mean gradient.
    pub adam_beta1: f64,
    /// Decay of the mean squared gradient.
    pub adam_beta2: f64,
    /// Added to the denominator.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients with a larger global norm are scaled down to it; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// How the moments are stored.
    pub optim: Optim,
}

impl Default for AdamW {
    /// PyTorch's defaults, but without weight decay, and with gradients clipped to a norm of 1.
    fn default() -> Self {
        Self {
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            optim: Optim::Adamw,
        }
    }
}

/// How AdamW's moments are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
pub enum Optim {
    /// Moments in f32, as in torch.optim.AdamW
    #[default]
    Adamw,
    /// Moments in blocks of 8-bit codes: a quarter of the memory
    #[serde(rename = "adamw_8bit")]
    #[cfg_attr(feature = "clap", value(name = "adamw_8bit"))]
    Adamw8bit,
}

/// A run's moments, for each arena.
enum Moments {
    /// First and second moments in f32, `(count)` each.
    Whole([Arenas; 2]),
    /// Both moments in 8 bits, and the table of the codes' values.
    Blocks(Vec<Tensor>, Tensor),
}

/// Gradients, moments and the step count of a run.
pub struct Optimizer {
    settings: AdamW,
    gradients: Arenas,
    moments: Moments,
    partials: Tensor,
    clip: Tensor,
    steps: u64,
}

impl Optimizer {
    /// Zeroed gradients and moments for `layout`.
    ///
    /// # Errors
    /// When a tensor exceeds the adapter's binding limit.
    pub fn new(memory: &Memory, layout: &Layout, settings: AdamW) -> Result<Self> {
        let partials = layout.arenas().len() * PARTIALS;
        let whole = |label| Arenas::new(memory, layout, Purpose::Moments, label);
        let moments = match settings.optim {
            Optim::Adamw => Moments::Whole([whole("first moments")?, whole("second moments")?]),
            Optim::Adamw8bit => {
                let words = layout.arenas().iter().map(|&(count, _)| adamw_8bit::state_words(count));
                let blocks = |words| Tensor::new(memory, Purpose::Moments, "moments", words, DType::U32);
                let table =
                    Tensor::from_f32(memory, Purpose::Moments, "8-bit numbers", &adamw_8bit::table())?;
                Moments::Blocks(words.map(blocks).collect::<Result<_>>()?, table)
            }
        };
        Ok(Self {
            settings,
            gradients: Arenas::new(memory, layout, Purpose::Gradients, "gradients")?,
            moments,
            partials: Tensor::new(memory, Purpose::Staging, "norm partials", partials, DType::F32)?,
            clip: Tensor::new(memory, Purpose::Staging, "clip", 2, DType::F32)?,
            steps: 0,
        })
    }

    /// The gradients, to which backward passes add.
    pub fn gradients(&self) -> &Arenas {
        &self.gradients
    }

    /// `(2)`: the last step's gradient norm before clipping, and the factor by which it was clipped.
    pub fn clip(&self) -> &Tensor {
        &self.clip
    }

    /// Number of optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps taken, to resume. The caller writes the moments to [`Optimizer::moments`].
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// The moments by name, with the index of their arena: `exp_avg.0`, `exp_avg_sq.0` or `moments_8bit.0`.
    pub fn moments<'a>(&'a self) -> Vec<(String, &'a Tensor)> {
        let kinds: Vec<(&'static str, &'a [Tensor])> = match &self.moments {
            Moments::Whole([first, second]) => {
                vec![("exp_avg", first.tensors()), ("exp_avg_sq", second.tensors())]
            }
            Moments::Blocks(all, _) => vec![("moments_8bit", all)],
        };
        let numbered = |(name, tensors): (&'static str, &'a [Tensor])| {
            tensors.iter().enumerate().map(move |(i, tensor)| (format!("{name}.{i}"), tensor))
        };
        kinds.into_iter().flat_map(numbered).collect()
    }

    /// Records a step on `values` with learning rate `lr`, and zeroes the gradients.
    pub fn step(&mut self, rec: &mut Recorder, layout: &Layout, values: &Arenas, lr: f64) -> Result<()> {
        self.steps += 1;
        let sizes = layout.arenas();
        for (i, gradient) in self.gradients.tensors().iter().enumerate() {
            sum_squares::forward(rec, gradient, &self.partials, i, sizes[i].0)?;
        }
        let s = self.settings;
        sum_squares::clip_scale(rec, &self.partials, &self.clip, sizes.len(), s.max_grad_norm as f32)?;
        for (i, &(count, decays)) in sizes.iter().enumerate() {
            let step = Step {
                lr,
                beta1: s.adam_beta1,
                beta2: s.adam_beta2,
                eps: s.adam_epsilon,
                weight_decay: if decays { s.weight_decay } else { 0.0 },
                t: self.steps,
            };
            let [w, g] = [values, &self.gradients].map(|arenas| &arenas.tensors()[i]);
            match &self.moments {
                Moments::Whole(both) => {
                    let [m, v] = both.each_ref().map(|arenas| &arenas.tensors()[i]);
                    adamw::step(rec, step, &self.clip, adamw::State { w, m, v, g }, count)?;
                }
                Moments::Blocks(all, table) => {
                    let state = adamw_8bit::State { w, moments: &all[i], g, table };
                    adamw_8bit::step(rec, step, &self.clip, state, count)?;
                }
            }
        }
        self.gradients.clear(rec);
        Ok(())
    }
}
