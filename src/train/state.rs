//! The state of a run as bytes. On the same GPU and driver, a run that is resumed from it has bit-identical
//! results.

/// A run between two steps, or (without tensors) a run that is still sampling its anchors.
#[derive(Clone)]
pub struct State {
    /// Optimizer steps done; while anchors are sampled, the number of prompts that were sampled from.
    pub step: usize,
    /// Counters, anchors and evaluation results, as JSON.
    pub record: Vec<u8>,
    /// The policy, AdamW's moments, the best state, moving references and cached log-probs, as safetensors.
    pub tensors: Vec<u8>,
    /// The policy's LoRA adapter in PEFT's format; `None` for full training.
    pub adapter: Option<Vec<u8>>,
}

impl State {
    /// Optimizer steps done; `None` while anchors are still being sampled.
    pub fn trained(&self) -> Option<usize> {
        (!self.tensors.is_empty()).then_some(self.step)
    }

    /// The point in the run, as in "resuming {place}" and "stopped {place}".
    pub fn place(&self) -> String {
        match self.trained() {
            Some(step) => format!("after step {step}"),
            None => "with the anchors sampled so far".into(),
        }
    }

    /// Progress, for comparisons: it increases as the run advances.
    pub fn progress(&self) -> (bool, usize) {
        (self.trained().is_some(), self.step)
    }
}
