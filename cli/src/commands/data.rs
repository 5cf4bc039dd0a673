//! `aweigh data`: shows a file's rows as the model will see them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::args::RowArgs;
use crate::open;
use crate::terminal::output::Output;
use crate::terminal::text::{count, table};
use aweigh::data::{
    ChatTokenizer, Example, ExampleOptions, LengthCounts, LengthLimits, Needs, Overlong, Parsed, Prompt, Row,
    Truncation, build_examples, parse_rows, remarks, row_remarks, rows_with,
};
use aweigh::error::Result;
use aweigh::files::Source;

/// Show the rows of a file as the model will see them.
///
/// Says in which form the rows are, how many are flagged, approved or pairs, and what is left out and why.
/// With --model it shows the rendered prompts, the tokens of the answers that count, lengths, and what
/// repeats or contradicts other rows. Needs no GPU.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The file: JSONL, a JSON list or CSV, plain or gzipped, or Parquet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The model whose tokenizer and chat template to use: a directory, a GGUF file, a name on the Hub, or
    /// "tiny"
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny", help_heading = "Model")]
    pub model: Option<String>,
    /// Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE", requires = "model", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// Number of rows to show
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Data")]
    pub show: usize,
    /// Maximum prompt length in tokens, as of align
    #[arg(long, value_name = "TOKENS", default_value_t = 512, requires = "model", help_heading = "Data")]
    pub max_prompt_length: usize,
    /// Maximum answer length in tokens, as of align
    #[arg(long, value_name = "TOKENS", default_value_t = 256, requires = "model", help_heading = "Data")]
    pub max_completion_length: usize,
}

const EXAMPLES: &str = "\
Examples:
  aweigh data flagged.jsonl
  aweigh data feedback.json --model HuggingFaceTB/SmolLM2-135M-Instruct --show 10
  aweigh data ratings.csv --label \"stars<=2\"";

#[derive(Serialize)]
struct Figures {
    file: String,
    /// The form in which the rows were written.
    form: &'static str,
    rows: usize,
    /// Rows by what they hold: flagged, approved, pairs, answers without a verdict, prompts alone.
    kinds: BTreeMap<&'static str, usize>,
    conversational: bool,
    /// Lines that were left out because a prompt or an answer is empty.
    empty_lines: Vec<usize>,
    /// Lines that were left out because they have no verdict.
    unrated_lines: Vec<usize>,
    /// Lengths in tokens, with --model.
    lengths: Option<LengthCounts>,
    remarks: Vec<String>,
    shown: Vec<Shown>,
}

/// A row as the model sees it.
#[derive(Serialize)]
struct Shown {
    line: usize,
    kind: &'static str,
    /// With --model rendered with the chat template, otherwise as it is written.
    prompt: String,
    prompt_tokens: Option<usize>,
    answers: Vec<ShownAnswer>,
}

/// An answer of a shown row.
#[derive(Serialize)]
struct ShownAnswer {
    verdict: &'static str,
    text: String,
    tokens: Option<usize>,
    /// How many of the tokens the row's weights let count; without weights all.
    counted: Option<usize>,
}

/// What a row holds.
fn kind(row: &Row) -> &'static str {
    match (row.chosen.is_some(), row.completion.is_some(), row.label) {
        (true, ..) => "pair",
        (_, true, Some(true)) => "approved",
        (_, true, Some(false)) => "flagged",
        (_, true, None) => "answer",
        (_, false, _) => "prompt",
    }
}

/// Shows the rows of a file.
///
/// # Errors
/// A file or a row that cannot be read, with its line.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let source = Source::read(&args.file, "FILE")?;
    let origin = &source.origin;
    let parsed = parse_rows(&source.bytes, origin, args.rows.label.as_ref())?;
    let mut said = parsed.remarks(origin);
    let Parsed { mut rows, empty_lines, unrated_lines, form } = parsed;
    if let Some(split) = &args.rows.split {
        rows = rows_with(rows, "split", split, origin)?;
    }
    rows.truncate(args.rows.max_samples.unwrap_or(usize::MAX));
    let mut kinds = BTreeMap::new();
    rows.iter().for_each(|row| *kinds.entry(kind(row)).or_insert(0) += 1);
    let tokenizer = args.model.as_deref().map(|name| {
        let model = open::model(name, true, output)?.with_chat_template(args.chat_template.as_deref())?;
        open::tokenizer(&model, output)
    });
    let (mut lengths, mut shown) = (None, Vec::new());
    match tokenizer.transpose()? {
        None => {
            said.extend(row_remarks(origin, &rows));
            shown.extend(rows.iter().take(args.show).map(plain));
        }
        Some(tokenizer) => {
            let limits = LengthLimits {
                max_prompt: Some(args.max_prompt_length),
                max_completion: Some(args.max_completion_length),
                prompt_side: Truncation::Left,
                overlong: Overlong::Cut,
            };
            let (examples, counts) =
                build_examples(&rows, origin, &tokenizer, &ExampleOptions::plain(Needs::Prompt, limits))?;
            said.extend(remarks(origin, &examples, &tokenizer));
            lengths = Some(counts);
            for example in examples.iter().take(args.show) {
                shown.push(rendered(example, &rows[example.row], &tokenizer)?);
            }
        }
    }
    let figures = Figures {
        file: origin.clone(),
        form: form.map_or("TRL", aweigh::data::RowForm::name),
        rows: rows.len(),
        kinds,
        conversational: rows.first().is_some_and(|row| row.prompt.is_conversational()),
        empty_lines,
        unrated_lines,
        lengths,
        remarks: said,
        shown,
    };
    output.result(figures.human(), &figures)
}

/// A row as it is written.
fn plain(row: &Row) -> Shown {
    let prompt = match &row.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => {
            let turns = messages.iter().map(|message| format!("{}: {}", message.role, message.content));
            turns.collect::<Vec<_>>().join("\n")
        }
    };
    let answer =
        |verdict, text: &str| ShownAnswer { verdict, text: text.to_owned(), tokens: None, counted: None };
    let good = row.positive().map(|own| answer("good", own.text()));
    let bad = row.negative().map(|own| answer("flagged", own.text()));
    let answers = good.into_iter().chain(bad).collect();
    Shown { line: row.line, kind: kind(row), prompt, prompt_tokens: None, answers }
}

/// A row as the model reads it: special tokens and all.
fn rendered(example: &Example, row: &Row, tokenizer: &ChatTokenizer) -> Result<Shown> {
    let mut answers = Vec::new();
    let marks = example.negative_weights.as_deref();
    let own = [("good", &example.chosen_ids, None), ("flagged", &example.negative_ids, marks)];
    for (verdict, ids, weights) in own {
        if let Some(ids) = ids {
            let text = tokenizer.decode(ids, false)?;
            let counted = weights.map_or(ids.len(), |all| all.iter().filter(|w| **w > 0.0).count());
            answers.push(ShownAnswer { verdict, text, tokens: Some(ids.len()), counted: Some(counted) });
        }
    }
    Ok(Shown {
        line: row.line,
        kind: kind(row),
        prompt: tokenizer.decode(&example.prompt_ids, false)?,
        prompt_tokens: Some(example.prompt_ids.len()),
        answers,
    })
}

impl Figures {
    fn human(&self) -> String {
        let texts = if self.conversational { "conversations" } else { "plain texts" };
        let mut parts = vec![format!("{}: {} rows, {}, {texts}", self.file, count(self.rows), self.form)];
        let rows: Vec<Vec<String>> =
            self.kinds.iter().map(|(kind, number)| vec![(*kind).to_owned(), number.to_string()]).collect();
        parts.push(table(&["kind", "rows"], &rows));
        parts.extend(self.lengths.as_ref().map(LengthCounts::to_string));
        parts.extend(self.remarks.iter().map(|remark| format!("note: {remark}")));
        parts.extend(self.shown.iter().map(Shown::human));
        parts.join("\n")
    }
}

impl Shown {
    fn human(&self) -> String {
        let tokens = |count: Option<usize>| count.map_or(String::new(), |count| format!(", {count} tokens"));
        let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let head = format!("\nline {}, {}\n  prompt{}\n", self.line, self.kind, tokens(self.prompt_tokens));
        let answer = |own: &ShownAnswer| {
            let counts = match own.counted {
                None => String::new(),
                Some(counted) if own.tokens == Some(counted) => ", all of which count".into(),
                Some(counted) => format!(", {counted} of which count"),
            };
            format!("  {} answer{}{counts}\n{}", own.verdict, tokens(own.tokens), indented(&own.text))
        };
        let answers: String = self.answers.iter().map(answer).collect();
        format!("{head}{}{answers}", indented(&self.prompt)).trim_end().to_owned()
    }
}
