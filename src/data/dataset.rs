//! Rows of preference data in TRL's forms.
//!
//! | keys | meaning |
//! |---|---|
//! | `prompt`, `completion`, `label` (boolean) | an answer that was flagged (false) or approved (true) |
//! | `prompt`, `completion` | an answer without a verdict |
//! | `prompt`, `chosen`, `rejected` | a pair |
//! | `chosen`, `rejected` | a pair whose prompt is the common beginning of both |
//! | `messages`, perhaps `label` | a conversation; its last assistant message is the completion |
//! | `prompt` | a prompt alone |
//!
//! Rows in the forms of [`super::forms`] are turned into these.
//!
//! Prompts and answers are either all strings or all lists of `{"role", "content"}`. A key with the value
//! null counts as absent.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::forms::{Label, RowForm, Verdict, to_trl};
use super::jsonl::ReadLimits;
use super::objects::for_each_object;
use super::row::{Fields, Row, has_calls, is_nothing};
use crate::error::{Error, Result, setting};

/// A file's rows, and the lines that were left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The rows, in the file's order.
    pub rows: Vec<Row>,
    /// Lines whose prompt or answer is empty. They are left out without an error, because models do give
    /// empty answers.
    pub empty_lines: Vec<usize>,
    /// Lines without a verdict in the column that gives them. They are left out too.
    pub unrated_lines: Vec<usize>,
    /// The form in which the first row was written.
    pub form: Option<RowForm>,
}

impl Parsed {
    /// Remarks on the file for the user: its form, if it is not TRL's, lines that were left out, and a
    /// `system` key, which is not read.
    pub fn remarks(&self, origin: &str) -> Vec<String> {
        let empty = self.empty_lines.first().map(|first| {
            let count = self.empty_lines.len();
            format!(
                "{origin}:{first}: left out because the prompt or an answer is empty (rows: {count}; this is \
                 the first)"
            )
        });
        let has_system = |row: &&Row| row.raw.get("system").is_some_and(|system| !is_nothing(system));
        let system = self.rows.iter().find(has_system).map(|row| {
            format!("{origin}:{}: \"system\" is not read: make it the first message of the prompt", row.line)
        });
        let form = self
            .form
            .filter(|form| *form != RowForm::Trl)
            .map(|form| format!("{origin}: read as {}; `aweigh data` shows how", form.name()));
        let unrated = self.unrated_lines.first().map(|first| {
            let count = self.unrated_lines.len();
            format!("{origin}:{first}: left out because it has no verdict (rows: {count}; this is the first)")
        });
        form.into_iter().chain(empty).chain(unrated).chain(system).collect()
    }
}

/// The rows of a file: JSONL, a JSON list or CSV, plain or gzipped, or Parquet, in TRL's forms or those of
/// [`super::forms`]. `origin` is the file's name for messages. With `label`, the column that it names has the
/// verdicts.
///
/// Fails with the file and line on: invalid JSON, CSV or UTF-8, a value of the wrong kind, a row whose form
/// differs from the first row's, an over-long line, and a file without rows.
pub fn parse_rows(bytes: &[u8], origin: &str, label: Option<&Label>) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut first: Option<Form> = None;
    let (mut negative, mut zeros) = (false, HashSet::new());
    for_each_object(bytes, origin, ReadLimits::default(), |line, mut map| {
        let place = format!("{origin}:{line}");
        let verdict = label.map(|label| label.apply(&mut map, &place)).transpose()?;
        negative |= verdict == Some(Verdict::Minus);
        let (map, form) = to_trl(map, &place)?;
        parsed.form.get_or_insert(form);
        // A rating without a verdict is none.
        let unrated = form == RowForm::OpenWebUi && !map.contains_key("label");
        if unrated || verdict == Some(Verdict::None) {
            parsed.unrated_lines.push(line);
            return Ok(());
        }
        if has_empty_text(&map) {
            parsed.empty_lines.push(line);
            return Ok(());
        }
        if verdict == Some(Verdict::Zero) {
            zeros.insert(line);
        }
        let row = Fields { map, place: &place, line }.into_row()?;
        check_form(&mut first, &row, &place)?;
        parsed.rows.push(row);
        Ok(())
    })?;
    if negative && !zeros.is_empty() {
        // Beside -1 and 1, 0 is no verdict.
        parsed.rows.retain(|row| !zeros.contains(&row.line));
        parsed.unrated_lines.extend(zeros);
        parsed.unrated_lines.sort_unstable();
    }
    if parsed.rows.is_empty() {
        let found = match (parsed.empty_lines.len(), parsed.unrated_lines.len()) {
            (0, 0) => "none".into(),
            (empty, 0) => format!("{empty} whose prompt or answer is empty"),
            (0, unrated) => format!("{unrated} without a verdict"),
            (empty, unrated) => format!("{empty} that are empty and {unrated} without a verdict"),
        };
        return Err(Error::input(origin, "at least one row", found, "check that this is the file you meant"));
    }
    Ok(parsed)
}

/// Whether a prompt or an answer has no text: blank, an empty list, or a list that ends in a blank message.
fn has_empty_text(map: &Map<String, Value>) -> bool {
    let content = |content: &Value| match content {
        Value::String(text) => text.trim().is_empty(),
        Value::Array(parts) => {
            parts.iter().all(|part| part["text"].as_str().is_some_and(|t| t.trim().is_empty()))
        }
        _ => false,
    };
    let message = |message: &Value| {
        message.get("content").is_some_and(content) && !message.as_object().is_some_and(has_calls)
    };
    let blank = |value: &Value| match value {
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.last().is_none_or(message),
        _ => false,
    };
    // In `messages`, the question is the message before the answer.
    let asked = map.get("messages").and_then(Value::as_array).and_then(|list| match &list[..] {
        [.., asked, last] if last["role"] == "assistant" => Some(asked),
        _ => None,
    });
    ["prompt", "completion", "chosen", "rejected", "messages"]
        .iter()
        .any(|key| map.get(*key).is_some_and(blank))
        || asked.is_some_and(message)
}

/// Fails if held-out rows would be trained on: `eval_split` names rows of the training file itself, and
/// `split` does not select others.
///
/// # Errors
/// [`Error::Input`], which names both settings.
pub fn check_splits(split: Option<&str>, eval_split: Option<&str>) -> Result<()> {
    if eval_split.is_none() || split.is_some() && split != eval_split {
        return Ok(());
    }
    let [key, eval_key, eval] = ["split", "eval_split", "eval"].map(setting);
    let found = match split {
        Some(split) => format!("{split:?}, the same"),
        None => "none, so that all rows are trained on".into(),
    };
    let fix = format!("name the rows to train on with {key}, or give held-out rows with {eval}");
    Err(Error::input(&key, format!("a split other than that of {eval_key}"), found, fix))
}

/// The rows whose field `name` (a string, number or boolean other than TRL's keys, such as `split`) equals
/// `value`. Fails when no row has it, and lists the values that occur.
pub fn rows_with(rows: Vec<Row>, name: &str, value: &str, origin: &str) -> Result<Vec<Row>> {
    let text = |row: &Row| match row.raw.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(other @ (Value::Number(_) | Value::Bool(_))) => Some(other.to_string()),
        _ => None,
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for row in rows {
        let found = text(&row);
        if found.as_deref() == Some(value) {
            kept.push(row);
        } else if seen.len() < 10 {
            seen.extend(found);
        }
    }
    if kept.is_empty() {
        let found = match seen.into_iter().collect::<Vec<_>>().join(", ") {
            names if names.is_empty() => format!("no row with a {name:?} field"),
            names => format!("only {names}"),
        };
        return Err(Error::input(
            origin,
            format!("rows with {name:?} = {value:?}"),
            found,
            "choose one of these, or remove the filter",
        ));
    }
    Ok(kept)
}

/// The properties that all rows of a file share. `line` is the line of the first row.
struct Form {
    line: usize,
    conversational: bool,
    paired: bool,
    /// Set by the first row that has a completion.
    labelled: Option<bool>,
}

fn check_form(first: &mut Option<Form>, row: &Row, place: &str) -> Result<()> {
    let conversational = row.prompt.is_conversational();
    let paired = row.chosen.is_some();
    let form = first.get_or_insert(Form { line: row.line, conversational, paired, labelled: None });
    let differs = |expected: &str, found: &str| {
        Err(Error::input(
            place,
            format!("{expected}, as in line {}", form.line),
            found,
            "keep rows of different forms in separate files",
        ))
    };
    let name = |flag, yes, no| if flag { yes } else { no };
    if form.conversational != conversational {
        let text = |flag| name(flag, "lists of messages", "plain strings");
        return differs(text(form.conversational), text(conversational));
    }
    if form.paired != paired {
        let text = |flag| name(flag, "chosen and rejected", "no chosen and rejected");
        return differs(text(form.paired), text(paired));
    }
    if row.completion.is_some() {
        let labelled = row.label.is_some();
        let text = |flag| name(flag, "a label", "no label");
        if form.labelled.is_some_and(|expected| expected != labelled) {
            return differs(text(!labelled), text(labelled));
        }
        form.labelled = Some(labelled);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
