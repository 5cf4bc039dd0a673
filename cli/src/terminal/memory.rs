//! Memory plans as tables.

use crate::terminal::text::{bytes, table};
use aweigh::gpu::Purpose;
use aweigh::run::Saving;
use aweigh::train::{Change, Plan, PlannedPhase};

/// A plan as a table: one row per purpose, one column per phase. `fitted` are the flags that `--fit` set.
pub fn plan(plan: &Plan, fitted: &[String]) -> String {
    let mut purposes: Vec<Purpose> =
        plan.phases.iter().flat_map(|phase| phase.by_purpose.keys().copied()).collect();
    purposes.sort_unstable();
    purposes.dedup();
    let row = |name: String, of: &dyn Fn(&PlannedPhase) -> Option<u64>| {
        let cells = plan.phases.iter().map(|phase| of(phase).map_or("-".into(), bytes));
        std::iter::once(name).chain(cells).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<String>> = purposes
        .into_iter()
        .map(|purpose| row(purpose.to_string(), &|phase| phase.by_purpose.get(&purpose).copied()))
        .collect();
    rows.push(row("total".into(), &|phase| Some(phase.total)));
    let headers: Vec<&str> =
        std::iter::once("memory").chain(plan.phases.iter().map(|phase| phase.name)).collect();
    let peak = plan.peak();
    let fitted =
        if fitted.is_empty() { String::new() } else { format!("; changed to fit: {}", fitted.join(" ")) };
    format!("{}\npeak GPU memory {}, in {}{fitted}", table(&headers, &rows), bytes(peak.total), peak.name)
}

/// The peak memory with each setting that would lower it, as a table.
pub fn savings(savings: &[Saving]) -> String {
    let row = |saving: &Saving| {
        let result = match saving.change {
            Change::Offload => "identical, but slower",
            Change::MaxTokensPerBatch(_) if saving.exact => "identical up to rounding",
            _ if saving.exact => "identical",
            _ => "close, not identical",
        };
        vec![saving.flag.clone(), bytes(saving.peak), result.into()]
    };
    table(&["setting", "peak memory", "results"], &savings.iter().map(row).collect::<Vec<_>>())
}
