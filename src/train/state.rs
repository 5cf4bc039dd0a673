//! All that the rest of a run depends on, as bytes: a run that goes on from it is, on the same adapter, the
//! same run to the bit.

/// A run between two steps, or one whose anchors are still being drawn: that has no tensors.
#[derive(Clone)]
pub struct State {
    /// Optimizer steps done; while anchors are drawn, the prompts that have theirs.
    pub step: usize,
    /// Counters, anchors, what evaluations came to: JSON.
    pub record: Vec<u8>,
    /// The policy, AdamW's moments, the best state, references that move, and log-probs that are kept:
    /// safetensors.
    pub tensors: Vec<u8>,
    /// The policy's adapter as PEFT stores it; `None` of a full run.
    pub adapter: Option<Vec<u8>>,
}

impl State {
    /// The steps done of a run that has begun to train.
    pub fn trained(&self) -> Option<usize> {
        (!self.tensors.is_empty()).then_some(self.step)
    }

    /// Where a run goes on from it, as in "going on ...".
    pub fn place(&self) -> String {
        match self.trained() {
            Some(step) => format!("after step {step}"),
            None => "with the anchors that were drawn".into(),
        }
    }

    /// Grows as a run comes further.
    pub fn progress(&self) -> (bool, usize) {
        (self.trained().is_some(), self.step)
    }
}
