//! Fits a run into its memory budget.

use serde::Serialize;

use crate::config::{MemorySize, RunConfig};
use crate::error::{Error, Result, setting, setting_to};
use crate::gpu::bytes;
use crate::train::{Change, Job, Plan, fit};

/// The effect of one setting on memory.
#[derive(Debug, Clone, Serialize)]
pub struct Saving {
    /// The setting with its value, as messages name it.
    pub flag: String,
    /// The change.
    #[serde(skip)]
    pub change: Change,
    /// Peak memory with it, in bytes.
    pub peak: u64,
    /// Whether results stay the same, up to the rounding of sums.
    pub exact: bool,
}

/// Settings and their memory plan, which is within the budget if one is set.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The settings, including the changes that `gpu.fit` made.
    pub config: RunConfig,
    /// The memory plan.
    pub plan: Plan,
    /// The changes that `gpu.fit` made, as messages name them.
    pub fitted: Vec<String>,
}

impl Planned {
    /// The plan of a run. With `gpu.fit`, the settings are changed until it fits. `max_binding` is the GPU's
    /// largest binding, in bytes.
    ///
    /// # Errors
    /// [`Error::Input`] if the plan exceeds `gpu.memory`; the message lists settings that would help.
    pub fn of(job: &Job, config: RunConfig, max_binding: u64) -> Result<Self> {
        let plan = job.plan(&config, max_binding)?;
        let Some(memory) = config.gpu.memory.clone().filter(|memory| plan.peak().total > memory.bytes())
        else {
            return Ok(Self { config, plan, fitted: Vec::new() });
        };
        let place = setting_to("memory", memory.to_string());
        let over = |plan: &Plan| format!("{} in {}", bytes(plan.peak().total), plan.peak().name);
        if !config.gpu.fit {
            let all = savings(job, &config, &plan, max_binding)?;
            let some: Vec<String> = all.iter().map(|s| format!("{} ({})", s.flag, bytes(s.peak))).collect();
            let fix = match some.is_empty() {
                true => "allow more memory, or use a smaller model".into(),
                false => format!("set {}, or one of: {}", setting("fit"), some.join(", ")),
            };
            return Err(Error::input(place, "a run that fits", over(&plan), fix));
        }
        let (found, least) = fit(&config, memory.bytes(), &|config| job.plan(config, max_binding))?;
        let Some(fitted) = found else {
            let fix = "allow more memory, or use a smaller model, shorter answers or fewer samples";
            let found = format!("{} with the smallest settings tried", over(&least));
            return Err(Error::input(place, "a run that fits", found, fix));
        };
        let flags = changed(&config, &fitted).into_iter().map(Change::flag).collect();
        Ok(Self { config: fitted, plan: least, fitted: flags })
    }

    /// Settings with a plan of less than `full` bytes, after a run did not fit although its plan did.
    ///
    /// # Errors
    /// As [`Planned::of`].
    pub fn smaller(&self, job: &Job, full: u64, max_binding: u64) -> Result<Self> {
        let mut config = self.config.clone();
        config.gpu.memory = Some(MemorySize::of(full - 1));
        Self::of(job, config, max_binding)
    }
}

/// The changes between two configurations.
fn changed(from: &RunConfig, to: &RunConfig) -> Vec<Change> {
    let (a, t) = (&to.anchors, &to.train);
    let mut all = Vec::new();
    all.extend((a.max_num_seqs != from.anchors.max_num_seqs).then_some(Change::MaxNumSeqs(a.max_num_seqs)));
    let tokens = t.max_tokens_per_batch.filter(|_| t.max_tokens_per_batch != from.train.max_tokens_per_batch);
    all.extend(tokens.map(Change::MaxTokensPerBatch));
    all.extend((t.recompute != from.train.recompute).then_some(Change::Recompute(t.recompute)));
    all.extend((t.optim != from.train.optim).then_some(Change::Optim(t.optim)));
    all.extend((to.model.offload && !from.model.offload).then_some(Change::Offload));
    all.extend(to.model.quantize.filter(|_| to.model.quantize != from.model.quantize).map(Change::Quantize));
    all
}

/// The changes of [`Plan::changes`] that reduce the peak, each applied alone.
///
/// # Errors
/// As [`Job::plan`].
pub fn savings(job: &Job, config: &RunConfig, plan: &Plan, max_binding: u64) -> Result<Vec<Saving>> {
    let mut all = Vec::new();
    for change in plan.changes(config) {
        let mut with = config.clone();
        change.apply(&mut with);
        let peak = job.plan(&with, max_binding)?.peak().total;
        if peak < plan.peak().total {
            all.push(Saving { flag: change.flag(), change, peak, exact: change.is_exact(config) });
        }
    }
    Ok(all)
}
