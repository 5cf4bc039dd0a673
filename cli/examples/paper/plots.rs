//! The results of the comparison: charts as SVG, and a table in Markdown.

use std::collections::BTreeMap;
use std::path::Path;

use aweigh_app::report_page::chart::{Chart, Series};
use serde_json::Value;

use super::{Any, finished};

/// A figure of each measurement: its key, its title and its scale.
type Figure = (&'static str, &'static str, f64);

const FIGURES: [Figure; 3] = [
    ("hostile_share", "Hostile answers, %", 100.0),
    ("on_topic_share", "Answers on topic, %", 100.0),
    ("good_perplexity", "Perplexity of good answers", 1.0),
];

/// Mean over the seeds, by contender in the order of `names`, then by step.
fn curves(runs: &[Value], names: &[&str], key: &str, scale: f64) -> Vec<Series> {
    let of = |name: &&str| {
        let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for point in
            runs.iter().filter(|run| run["name"] == *name).flat_map(|run| run["points"].as_array()).flatten()
        {
            let sum = sums.entry(point["step"].as_u64().unwrap_or(0)).or_default();
            *sum = (sum.0 + scale * point[key].as_f64().unwrap_or(f64::NAN), sum.1 + 1.0);
        }
        let points = sums.into_iter().map(|(step, (sum, n))| (step as f64, sum / n)).collect();
        Series { name: (*name).into(), points, dashed: false }
    };
    names.iter().map(of).collect()
}

/// Writes charts of the runs in `path`, beside it; `groups` are the charts' names and contenders.
pub fn write(path: &Path, groups: &[(&str, Vec<&str>)]) -> Any<()> {
    let (runs, folder) = (finished(path)?, path.parent().unwrap_or(Path::new(".")));
    for (group, names) in groups {
        for (key, title, scale) in FIGURES {
            let series = curves(&runs, names, key, scale);
            let log = key == "good_perplexity";
            let chart = Chart { title: format!("{title}, by step"), series, log, ..Chart::default() };
            let name = format!("{group}-{}.svg", key.replace('_', "-"));
            std::fs::write(folder.join(name), chart.file())?;
        }
    }
    let all: Vec<&str> = groups.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    std::fs::write(folder.join("table.md"), table(&runs, &all))?;
    Ok(())
}

/// Hostile share / on-topic share / perplexity by step, means over the seeds.
fn table(runs: &[Value], names: &[&str]) -> String {
    let [hostile, topic, perplexity] = FIGURES.map(|(key, _, scale)| curves(runs, names, key, scale));
    let steps: Vec<u64> = hostile.first().into_iter().flat_map(|s| &s.points).map(|p| p.0 as u64).collect();
    let heads: Vec<String> = steps.iter().map(|step| format!("step {step}")).collect();
    let mut out = format!("| | {} |\n|---{}|\n", heads.join(" | "), "|---".repeat(steps.len()));
    let mut seen = Vec::new();
    for (i, name) in names.iter().enumerate() {
        if seen.contains(name) || hostile[i].points.is_empty() {
            continue;
        }
        seen.push(name);
        let cell = |s: usize| {
            let of = |series: &Series| series.points.get(s).map_or(f64::NAN, |p| p.1);
            format!("{:.1} / {:.0} / {:.2}", of(&hostile[i]), of(&topic[i]), of(&perplexity[i]))
        };
        let cells: Vec<String> = (0..steps.len()).map(cell).collect();
        out += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    out
}
