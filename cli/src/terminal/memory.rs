//! Plans of memory as tables.

use crate::terminal::text::{bytes, table};
use aweigh::gpu::Purpose;
use aweigh::run::Saving;
use aweigh::train::{Plan, PlannedPhase};

/// A plan as a table: purposes down, phases across.
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
    rows.push(row("all".into(), &|phase| Some(phase.total)));
    let headers: Vec<&str> =
        std::iter::once("memory").chain(plan.phases.iter().map(|phase| phase.name)).collect();
    let peak = plan.peak();
    let fitted =
        if fitted.is_empty() { String::new() } else { format!(", with {} to fit", fitted.join(" ")) };
    format!(
        "{}\n{} of GPU memory at the most, in {}{fitted}",
        table(&headers, &rows),
        bytes(peak.total),
        peak.name
    )
}

/// What each setting would bring, as a table.
pub fn savings(savings: &[Saving]) -> String {
    let row = |saving: &Saving| {
        let result = match saving.exact {
            true if saving.flag == "--offload" => "the same, slowly",
            true => "the same",
            false => "close",
        };
        vec![saving.flag.clone(), bytes(saving.peak), result.into()]
    };
    table(&["with", "at the most", "results"], &savings.iter().map(row).collect::<Vec<_>>())
}
