//! Runs and evaluations as one self-contained HTML page.

pub mod chart;
mod run;

use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::{Value, json};

use aweigh::error::{Error, Result};
use chart::{Chart, Series, short};
pub use run::Run;

/// The page's template.
const TEMPLATE: &str = include_str!("report.html");

/// The style of charts, whose lines have classes.
pub const CHART_STYLE: &str = include_str!("chart.css");

/// A chart of `figures` (name in metrics, name in the legend, whether it is held-out) for all `runs`.
fn chart(title: &str, note: &str, runs: &[Run], figures: &[(&str, &str, bool)]) -> Chart {
    let of = |run: &Run| {
        let line = |&(figure, name, dashed): &(&str, &str, bool)| {
            let name = match (runs.len(), name) {
                (1, name) => name.to_string(),
                (_, "") => run.name.clone(),
                (_, name) => format!("{}: {name}", run.name),
            };
            Series { name, points: run.points(figure), dashed }
        };
        figures.iter().map(line).collect::<Vec<_>>()
    };
    let series = runs.iter().flat_map(of).collect();
    Chart { title: title.into(), note: note.into(), series, ..Chart::default() }
}

/// The charts of all runs.
fn charts(runs: &[Run]) -> Vec<Chart> {
    let mut all = vec![chart(
        "Loss",
        "Solid: training steps; dashed: held-out examples.",
        runs,
        &[("loss", "train", false), ("eval_loss", "held out", true)],
    )];
    for run in runs {
        let title = if runs.len() == 1 { "Rewards".into() } else { format!("Rewards: {}", run.name) };
        all.push(chart(
            &title,
            "The reward of flagged answers should fall, that of the others should not: if both fall, the run \
             is breaking the model.",
            std::slice::from_ref(run),
            &[
                ("rewards/anchor", "anchors", false),
                ("rewards/chosen", "chosen", false),
                ("rewards/negative", "flagged", false),
                ("rewards/rejected", "rejected", false),
                ("eval_rewards/anchor", "anchors, held out", true),
                ("eval_rewards/negative", "flagged, held out", true),
            ],
        ));
    }
    all.extend([
        chart(
            "Margins",
            "Reward of anchors or chosen answers minus reward of flagged or rejected answers.",
            runs,
            &[("rewards/margins", "train", false), ("eval_rewards/margins", "held out", true)],
        ),
        chart(
            "KL divergence",
            "From the reference, in nats per token (for KTO, per answer): how far the model has moved.",
            runs,
            &[
                ("kl/anchor", "anchors", false),
                ("kl", "mismatched answers", false),
                ("eval_kl/anchor", "held out", true),
            ],
        ),
        chart(
            "Log-probs",
            "Sum over the tokens of an answer, in nats.",
            runs,
            &[
                ("logps/anchor", "anchors", false),
                ("logps/chosen", "chosen", false),
                ("logps/negative", "flagged", false),
                ("logps/rejected", "rejected", false),
            ],
        ),
        chart(
            "Perplexity of good answers",
            "On held-out examples. It should not rise.",
            runs,
            &[("eval_perplexity", "", false)],
        ),
        chart("Gradient norm", "Before clipping.", runs, &[("grad_norm", "", false)]),
        chart("Entropy", "Of the predicted token distribution, in nats.", runs, &[("entropy", "", false)]),
        chart("Learning rate", "", runs, &[("learning_rate", "", false)]),
        chart("Throughput", "Packed tokens per second.", runs, &[("tokens_per_second", "", false)]),
    ]);
    all.retain(|chart| !chart.is_empty());
    all
}

/// One run in the table of runs.
#[derive(Serialize)]
struct TableRow {
    name: String,
    method: String,
    model: String,
    rate: String,
    ended: String,
    kept: String,
    held_out: Vec<HeldOut>,
    time: String,
    speed: String,
    memory: Vec<(String, String, f64)>,
    memory_peak: String,
}

/// A held-out figure before and after a run.
#[derive(Serialize)]
struct HeldOut {
    name: String,
    before: String,
    after: String,
    /// After minus before, with its sign.
    difference: String,
    /// "better", "worse", or empty if the change is neither.
    verdict: &'static str,
}

/// Whether a higher value of a held-out figure is better; `None` if it is neither good nor bad by itself.
fn more_is_better(name: &str) -> Option<bool> {
    let good = [
        "rewards/margins",
        "rewards/accuracies",
        "rewards/anchor",
        "rewards/chosen",
        "logps/anchor",
        "logps/chosen",
    ];
    let bad = [
        "loss",
        "nll_loss",
        "perplexity",
        "rewards/negative",
        "rewards/rejected",
        "logps/negative",
        "logps/rejected",
    ];
    match name.replace("_per_token", "").as_str() {
        name if good.contains(&name) => Some(true),
        name if bad.contains(&name) => Some(false),
        _ => None,
    }
}

impl HeldOut {
    fn new(name: &str, before: &Value, after: &Value) -> Self {
        // Four decimals: smaller changes are rounding errors.
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        let numbers = before.as_f64().zip(after.as_f64()).map(|(b, a)| (rounded(b), rounded(a)));
        let text = |value: &Value| match value.as_f64() {
            None => "-".into(),
            Some(value) if value.abs() >= 100.0 => format!("{value:.1}"),
            Some(value) => short(rounded(value)),
        };
        let difference = numbers.map(|(before, after)| rounded(after - before));
        let name = name.trim_start_matches("eval_");
        let verdict = match (difference.filter(|d| *d != 0.0), more_is_better(name)) {
            (Some(difference), Some(more)) if (difference > 0.0) == more => "better",
            (Some(_), Some(_)) => "worse",
            _ => "",
        };
        let difference =
            difference.map_or("-".into(), |d| format!("{}{}", if d > 0.0 { "+" } else { "" }, short(d)));
        Self { name: name.into(), before: text(before), after: text(after), difference, verdict }
    }
}

/// A duration for display: `3.2 s`, `4 min 05 s`, `2 h 07 min`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

fn bytes(value: f64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.into_iter().find(|(power, _)| value >= f64::from(1 << power));
    fits.map_or(format!("{value} bytes"), |(power, unit)| {
        format!("{:.1} {unit}", value / f64::from(1 << power))
    })
}

fn row(run: &Run) -> TableRow {
    let summary = &run.summary;
    let number = |key: &str| summary[key].as_f64();
    let peak = number("memory_peak").unwrap_or(0.0);
    let mut memory: Vec<(String, String, f64)> = summary["memory_peaks"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(purpose, value)| Some((purpose.replace('_', " "), value.as_f64()?)))
        .filter(|(_, value)| *value > 0.0)
        .map(|(purpose, value)| (purpose, bytes(value), 100.0 * value / peak.max(1.0)))
        .collect();
    memory.sort_by(|a, b| b.2.total_cmp(&a.2));
    let before =
        summary["before"].as_object().into_iter().flatten().filter(|(name, _)| *name != "global_step");
    let held_out = before.map(|(name, value)| HeldOut::new(name, value, &summary["after"][name]));
    let took = number("seconds").map(duration);
    let finished = summary["finished"].as_str().map(|time| time.replace('T', " ").replace('Z', " UTC"));
    let time = match (took, finished) {
        (Some(took), Some(finished)) => format!("{took}, finished {finished}"),
        (took, finished) => took.or(finished).unwrap_or("-".into()),
    };
    TableRow {
        name: run.name.clone(),
        method: run.setting("method", "method"),
        model: run.setting("model", "model"),
        rate: run.setting("train", "learning_rate"),
        ended: match (number("steps"), summary["reason_text"].as_str().or(summary["reason"].as_str())) {
            (Some(steps), Some(reason)) => format!("after step {steps}: {reason}"),
            _ => format!("not ended; {} steps logged", run.points("loss").len()),
        },
        kept: number("kept_step").map_or("-".into(), |step| format!("step {step}")),
        held_out: held_out.collect(),
        time,
        speed: number("tokens_per_second").map_or("-".into(), |rate| format!("{rate:.0} tokens/s")),
        memory,
        memory_peak: if peak > 0.0 { bytes(peak) } else { "-".into() },
    }
}

/// A prompt, and its answers at several steps of a run.
#[derive(Serialize)]
struct Course {
    prompt: String,
    answers: Vec<(String, String)>,
}

/// Maximum number of steps whose answers are shown side by side.
const SHOWN: usize = 4;

/// The text of a prompt or completion: the string, or the content of the last message.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(messages) => {
            messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default().into()
        }
        _ => String::new(),
    }
}

fn courses(run: &Run) -> Vec<Course> {
    let step = |line: &Value| line["step"].as_u64();
    let mut steps: Vec<u64> = run.completions.iter().filter_map(step).collect();
    steps.sort_unstable();
    steps.dedup();
    // The first, the middle and the last step, and the step whose state was kept.
    let kept = run.summary["kept_step"].as_u64();
    let mut shown: Vec<u64> =
        [steps.first(), steps.get(steps.len() / 2), steps.last()].into_iter().flatten().copied().collect();
    shown.extend(kept.filter(|kept| steps.contains(kept)));
    shown.sort_unstable();
    shown.dedup();
    shown.truncate(SHOWN);
    let mut all: Vec<Course> = Vec::new();
    let mut lines: Vec<&Value> = Vec::new();
    let same = |a: &Value, b: &Value| a["set"] == b["set"] && a["line"] == b["line"];
    for line in &run.completions {
        let of_set = lines.iter().filter(|seen| seen["set"] == line["set"]).count();
        if of_set < SIDES && !lines.iter().any(|seen| same(seen, line)) {
            lines.push(line);
        }
    }
    for first in lines {
        let of = |&step: &u64| {
            let found = run.completions.iter().find(|l| same(l, first) && l["step"] == step)?;
            let note = if Some(step) == kept { ", kept" } else { "" };
            Some((format!("step {step}{note}"), text(&found["completion"])))
        };
        let prompt = text(&first["prompt"]);
        let prompt = if first["set"] == "ordinary" { format!("(ordinary) {prompt}") } else { prompt };
        all.push(Course { prompt, answers: shown.iter().filter_map(of).collect() });
    }
    all
}

/// The table of one set of prompts in a report of `aweigh eval`.
#[derive(Serialize)]
struct Table {
    name: String,
    candidates: Vec<String>,
    rows: Vec<(String, Vec<(String, String)>)>,
    conclusions: Vec<String>,
    answers: Vec<(String, Vec<(String, String)>)>,
}

/// Maximum number of prompts of a set whose answers are shown.
const SIDES: usize = 6;

fn tables(eval: &Value) -> Vec<Table> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let candidates: Vec<String> = list(&eval["candidates"]).iter().map(text).collect();
    let figure = |figure: &Value| {
        let share = figure["unit"] == "share";
        let number = |value: f64| if share { format!("{:.1}%", 100.0 * value) } else { short(value) };
        let cell =
            |value: &Value| match (value["value"].as_f64(), value["low"].as_f64(), value["high"].as_f64()) {
                (Some(v), Some(low), Some(high)) if low != high => {
                    (number(v), format!("{} to {}", number(low), number(high)))
                }
                (Some(v), ..) => (number(v), String::new()),
                _ => ("-".into(), String::new()),
            };
        (text(&figure["name"]), list(&figure["values"]).iter().map(cell).collect())
    };
    let set = |set: &Value| {
        let side = |side: &Value| {
            let answers = list(&side["answers"]);
            (text(&side["prompt"]), candidates.iter().cloned().zip(answers.iter().map(text)).collect())
        };
        Table {
            name: format!("{}, {} prompts", text(&set["name"]), set["prompts"]),
            candidates: candidates.clone(),
            rows: list(&set["figures"]).iter().map(figure).collect(),
            conclusions: list(&set["conclusions"]).iter().map(text).collect(),
            answers: list(&set["answers"]).iter().take(SIDES).map(side).collect(),
        }
    };
    list(&eval["sets"]).iter().map(set).collect()
}

/// The charts of a run, for other pages: title, note, legend and SVG of each.
pub fn drawn(runs: &[Run]) -> Vec<Value> {
    let all = charts(runs);
    let one = |c: &Chart| {
        let legend: Vec<Value> =
            c.legend().into_iter().map(|(name, class)| json!({"name": name, "class": class})).collect();
        json!({"title": c.title, "note": c.note, "legend": legend, "svg": c.svg()})
    };
    all.iter().map(one).collect()
}

/// What a report says of one run, for other pages: how it ended, held-out figures before and after, and
/// answers through the run.
pub fn told(run: &Run) -> Value {
    json!({ "row": row(run), "courses": courses(run) })
}

/// The tables of an evaluation that `aweigh eval --output` wrote, for other pages.
pub fn told_eval(eval: &Value) -> Value {
    json!(tables(eval))
}

/// The HTML page of `runs` and of `evals`, which `aweigh eval --output` wrote.
///
/// # Errors
/// Only for a bug in the page's template.
pub fn html(title: &str, runs: &[Run], evals: &[Value]) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let rows: Vec<TableRow> = runs.iter().map(row).collect();
    let course = |run: &Run| (run.name.clone(), courses(run));
    let all_courses: Vec<(String, Vec<Course>)> =
        runs.iter().map(course).filter(|(_, courses)| !courses.is_empty()).collect();
    let configs: Vec<(&str, &str)> = runs
        .iter()
        .filter(|run| !run.config.is_empty())
        .map(|run| (run.name.as_str(), run.config.as_str()))
        .collect();
    let page = json!({
        "title": title,
        "chart_style": CHART_STYLE,
        "version": env!("CARGO_PKG_VERSION"),
        "runs": rows,
        "charts": drawn(runs),
        "courses": all_courses,
        "evals": evals.iter().flat_map(tables).collect::<Vec<_>>(),
        "configs": configs,
    });
    let page = minijinja::Value::from(minijinja::value::Serde(page));
    environment
        .render_str(TEMPLATE, page)
        .map_err(|error| Error::Internal { doing: "writing the report", message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: usize) -> Run {
        let line = |step: usize| {
            let value = json!({"loss": 1.0 / (1.0 + step as f64), "rewards/anchor": 0.1,
                "rewards/negative": -(step as f64),
                "grad_norm": 2.0, "global_step": step, "tokens_per_second": 100.0});
            value.as_object().unwrap().clone()
        };
        let completion = |step: u64| {
            let answer = format!("answer {step}");
            json!({"step": step, "line": 3, "prompt": "ask <b>", "completion": answer})
        };
        Run {
            name: "one".into(),
            metrics: (0..steps).map(line).collect(),
            completions: [0, 5, 10, 15].map(completion).into(),
            summary: json!({"steps": 15, "kept_step": 10, "reason_text": "why", "memory_peak": 4e6,
                "memory_peaks": {"weights": 3e6}, "seconds": 245.0, "finished": "2026-11-28T18:42:43Z",
                "before": {"eval_perplexity": 2.0, "global_step": 0}, "after": {"eval_perplexity": 1.5}}),
            config: "[method]\nmethod = \"d2o\"\n[model]\nmodel = \"tiny\"\n".into(),
        }
    }

    #[test]
    fn a_page_holds_everything_and_asks_for_nothing() {
        let eval = json!({"candidates": ["base", "one"], "sets": [{"name": "held", "prompts": 2,
            "figures": [{"name": "hostile", "unit": "share",
                "values": [{"value": 0.5, "low": 0.4, "high": 0.6}, null]}],
            "conclusions": ["hostile: one is lower than base"],
            "answers": [{"prompt": "p", "answers": ["x", "y"]}]}]});
        let page = html("A title & more", &[run(20)], &[eval]).unwrap();
        for part in [
            "A title &amp; more",
            "Rewards",
            "Gradient norm",
            "d2o",
            "after step 15: why",
            "4 min 05 s, finished 2026-11-28 18:42:43 UTC",
            "class=\"number better\">-0.5<small>better</small>",
            "class=\"grid-of alone\"",
            "step 10, kept",
            "ask &lt;b&gt;",
            "answer 15",
            "50.0%",
            "40.0% to 60.0%",
            "hostile: one is lower than base",
            "method = &quot;d2o&quot;",
            "prefers-color-scheme: dark",
            "@media print",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for outside in ["http://", "https://", "src=", "@import", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("Margins"), "a chart without a line");
    }

    #[test]
    fn changes_are_good_or_bad_by_what_they_are_of() {
        let verdict =
            |name: &str, before: f64, after: f64| HeldOut::new(name, &json!(before), &json!(after)).verdict;
        assert_eq!(verdict("eval_perplexity", 2.0, 2.5), "worse");
        assert_eq!(verdict("eval_rewards/negative", 0.0, -0.5), "better");
        assert_eq!(verdict("eval_logps_per_token/anchor", -2.0, -2.1), "worse");
        // Neither good nor bad by itself; and no change but for rounding.
        assert_eq!([verdict("eval_entropy", 2.0, 1.0), verdict("eval_loss", 0.5, 0.500_04)], ["", ""]);
        assert_eq!(HeldOut::new("eval_loss", &json!(1.0), &Value::Null).difference, "-");
    }

    #[test]
    fn ten_thousand_steps_make_a_small_page() {
        let page = html("long", &[run(10_000)], &[]).unwrap();
        assert!(page.len() < 400_000, "{} bytes", page.len());
    }

    #[test]
    fn a_run_that_has_not_ended_has_a_page_too() {
        let page =
            html("half", &[Run { name: "half".into(), metrics: run(3).metrics, ..Run::default() }], &[])
                .unwrap();
        assert!(page.contains("not ended; 3 steps logged"));
    }
}
