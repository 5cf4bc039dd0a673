//! A run that fits into the memory that it may take.

use serde::Serialize;

use crate::config::{MemorySize, RunConfig};
use crate::error::{Error, Result};
use crate::gpu::bytes;
use crate::train::{Change, Job, Plan, fit};

/// What one more setting would bring.
#[derive(Debug, Clone, Serialize)]
pub struct Saving {
    /// The setting, as a flag.
    pub flag: String,
    /// Bytes at the most with it.
    pub peak: u64,
    /// Whether results stay the same to the bit.
    pub exact: bool,
}

/// A plan that is within the budget, where there is one, and the settings that it is of.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The settings, changed where `gpu.fit` had to.
    pub config: RunConfig,
    /// Their plan.
    pub plan: Plan,
    /// What was changed, as flags.
    pub fitted: Vec<String>,
}

impl Planned {
    /// The plan of a run, with the settings changed until it fits where `gpu.fit` asks for that.
    /// `max_binding` is the largest binding of the GPU, in bytes.
    ///
    /// # Errors
    /// [`Error::Input`] for a plan over `gpu.memory`, with what would help.
    pub fn of(job: &Job, config: RunConfig, max_binding: u64) -> Result<Self> {
        let plan = job.plan(&config, max_binding)?;
        let Some(memory) = config.gpu.memory.clone().filter(|memory| plan.peak().total > memory.bytes())
        else {
            return Ok(Self { config, plan, fitted: Vec::new() });
        };
        let place = format!("--memory {memory}");
        let over = |plan: &Plan| format!("{} in {}", bytes(plan.peak().total), plan.peak().name);
        if !config.gpu.fit {
            let all = savings(job, &config, &plan, max_binding)?;
            let some: Vec<String> = all.iter().map(|s| format!("{} ({})", s.flag, bytes(s.peak))).collect();
            let fix = match some.is_empty() {
                true => "allow more memory, or take a smaller model".into(),
                false => format!("take --fit, or one of: {}", some.join(", ")),
            };
            return Err(Error::input(place, "a run that fits", over(&plan), fix));
        }
        let (found, least) = fit(&config, memory.bytes(), &|config| job.plan(config, max_binding))?;
        let Some(fitted) = found else {
            let fix = "allow more memory, or take a smaller model, shorter answers or fewer samples";
            let found = format!("{}, at the least that was found", over(&least));
            return Err(Error::input(place, "a run that fits", found, fix));
        };
        let flags = changed(&config, &fitted).into_iter().map(Change::flag).collect();
        Ok(Self { config: fitted, plan: least, fitted: flags })
    }

    /// Of a run that did not fit, although its plan allowed it, the settings of one that takes less than
    /// `full` bytes.
    ///
    /// # Errors
    /// As [`Planned::of`].
    pub fn smaller(&self, job: &Job, full: u64, max_binding: u64) -> Result<Self> {
        let mut config = self.config.clone();
        config.gpu.memory = Some(MemorySize::of(full - 1));
        Self::of(job, config, max_binding)
    }
}

/// What was changed from one to the other.
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

/// What each single change would bring.
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
            all.push(Saving { flag: change.flag(), peak, exact: change.is_exact(config) });
        }
    }
    Ok(all)
}
