//! A comparison's figures, as JSON and as text.

use serde::Serialize;

use crate::comparison::Set;
use crate::meters::Spec;
use crate::text::table;
use aweigh::eval::compare::{
    Answers, Comparison, Figure, LEAST_PROMPTS, Metered, Unit, Verdict, comparisons, figures,
};
use aweigh::eval::stats::Estimate;

/// The JSON that `--json` prints and `--output` gets.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The base model.
    pub model: String,
    /// The GPU.
    pub gpu: String,
    /// The candidates' names.
    pub candidates: Vec<String>,
    /// The meters' names.
    pub meters: Vec<String>,
    /// The seed of the answers.
    pub seed: u32,
    /// The temperature of the answers.
    pub temperature: f64,
    /// One report for each set of prompts.
    pub sets: Vec<SetReport>,
}

/// One set's figures, and the answers side by side.
#[derive(Debug, Serialize)]
pub struct SetReport {
    /// The set's name.
    pub name: String,
    /// The number of its prompts.
    pub prompts: usize,
    /// The meters' figures and others.
    pub figures: Vec<Figure>,
    /// Each candidate against the first.
    pub comparisons: Vec<Comparison>,
    /// The comparisons in words.
    conclusions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Side>,
}

/// A prompt with the first answer of each candidate.
#[derive(Debug, Serialize)]
struct Side {
    prompt: String,
    answers: Vec<String>,
}

impl SetReport {
    /// The report of a set: `rows` are the indices of the rows that were answered.
    pub fn new(
        set: &Set,
        rows: &[usize],
        (candidates, names): (&[Answers], &[String]),
        specs: &[Spec],
    ) -> Self {
        let yes_or_no = |spec: &Spec| matches!(spec, Spec::Rule(_) | Spec::Hostile | Spec::OffTopic);
        let meters: Vec<Metered> = specs.iter().map(|spec| (spec.to_string(), yes_or_no(spec))).collect();
        let first = |answers: &Answers, prompt: usize| {
            let at = answers.prompts.iter().position(|&own| own == prompt);
            at.map_or_else(String::new, |at| answers.texts[at].clone())
        };
        let side = |(i, &row): (usize, &usize)| Side {
            prompt: set.rows[row].prompt.last_text().into(),
            answers: candidates.iter().map(|answers| first(answers, i)).collect(),
        };
        let comparisons = comparisons(candidates, names, rows.len(), &meters);
        Self {
            name: set.name.clone(),
            prompts: rows.len(),
            figures: figures(candidates, rows.len(), &meters),
            conclusions: comparisons.iter().map(|of| sentence(of, &names[0], rows.len())).collect(),
            comparisons,
            answers: rows.iter().enumerate().map(side).collect(),
        }
    }
}

/// A figure with its interval, for display.
fn cell(unit: Unit, estimate: Option<&Estimate>) -> String {
    let Some(Estimate { value, low, high }) = estimate else { return "-".into() };
    let text = |value: f64| match unit {
        Unit::Share => format!("{:.1}%", 100.0 * value),
        Unit::Number if value.abs() >= 100.0 => format!("{value:.1}"),
        Unit::Number => format!("{value:.3}"),
    };
    if low == high { text(*value) } else { format!("{} [{}, {}]", text(*value), text(*low), text(*high)) }
}

/// A comparison with the candidate `first` on `prompts` prompts, in words.
pub fn sentence(of: &Comparison, first: &str, prompts: usize) -> String {
    let Comparison { meter, candidate, unit, difference, verdict, detectable } = of;
    let text = |value: f64| match unit {
        Unit::Share => format!("{:.1}", 100.0 * value),
        Unit::Number => format!("{value:.3}"),
    };
    let points = if *unit == Unit::Share { " points" } else { "" };
    let Estimate { value, low, high } = *difference;
    match verdict {
        Verdict::Better => {
            format!(
                "{meter}: {candidate} is lower than {first} by {}{points} [{}, {}]",
                text(-value),
                text(-high),
                text(-low)
            )
        }
        Verdict::Worse => {
            format!(
                "{meter}: {candidate} is higher than {first} by {}{points} [{}, {}]",
                text(value),
                text(low),
                text(high)
            )
        }
        Verdict::Undecided => {
            let none = format!(
                "{meter}: no difference shown between {first} and {candidate}: {}{points} [{}, {}]",
                text(value),
                text(low),
                text(high)
            );
            match detectable {
                _ if prompts < LEAST_PROMPTS => format!("{none}; {prompts} prompts are too few to tell"),
                Some(size) => format!(
                    "{none}; {prompts} prompts show a difference of {} or more, eight times in ten",
                    text(*size)
                ),
                None => none,
            }
        }
    }
}

impl Report {
    /// The figures as a table for the terminal.
    pub fn table(&self) -> String {
        let of_set = |set: &SetReport| {
            let head = format!("{}, {} prompts", set.name, set.prompts);
            let mut headers = vec![head.as_str()];
            headers.extend(self.candidates.iter().map(String::as_str));
            let row = |figure: &Figure| {
                let cells = figure.values.iter().map(|value| cell(figure.unit, value.as_ref()));
                std::iter::once(figure.name.clone()).chain(cells).collect::<Vec<_>>()
            };
            let figures = table(&headers, &set.figures.iter().map(row).collect::<Vec<_>>());
            std::iter::once(figures).chain(set.conclusions.iter().cloned()).collect::<Vec<_>>().join("\n")
        };
        self.sets.iter().map(of_set).collect::<Vec<_>>().join("\n\n")
    }
}
