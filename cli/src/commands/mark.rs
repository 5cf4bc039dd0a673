//! `aweigh mark`: finds which part of each flagged answer is at fault.

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use aweigh_app::meters::{Meter, Spec};
use pollster::block_on;
use serde::Serialize;

use super::sample::{check_context, draw};
use crate::args::{GpuArgs, ModelArgs, RowArgs, SamplingArgs, WeightArgs, at_least_one};
use crate::open::{self, Ran};
use crate::terminal::output::Output;
use aweigh::data::{
    ChatTokenizer, Completion, Example, ExampleOptions, LengthLimits, Needs, Prompt, Row, build_examples,
};
use aweigh::error::{Error, Result};
use aweigh::eval::advantage;
use aweigh::files::{Source, WholeFile, refuse_existing};

/// Mark the part of each flagged answer that is at fault.
///
/// An answer is cut into its sentences and lines. From each beginning of it the model goes on a few times,
/// and a meter says how bad what comes out is. A sentence that makes it worse is at fault: it gets a weight,
/// as large as the change, relative to the answer's worst sentence. The output has the rows for align's
/// --train, with "weights".
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Rows with flagged answers, in any of align's forms; rows without one are left out
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// Maximum length of a prompt; longer prompts lose their beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 512, help_heading = "Data")]
    pub max_prompt_length: usize,
    /// Says how bad an answer is, as for eval; its scores count, whatever their scale
    #[arg(long, value_name = "METER", help_heading = "Marks")]
    pub meter: Spec,
    /// The model's name at an http: meter's endpoint
    #[arg(long, value_name = "NAME", help_heading = "Marks")]
    pub meter_model: Option<String>,
    /// Continuations from each beginning; more are more exact
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Marks")]
    pub num_samples: usize,
    /// Maximum number of parts of an answer; if it has more sentences, neighbours are joined
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Marks")]
    pub max_parts: usize,
    /// How continuations are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// JSONL file for the rows. It appears only when it is complete
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: PathBuf,
    /// Replace --output if it exists
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh mark --model DIR --data flagged.jsonl --meter judge:judge --output marked.jsonl
  aweigh mark --model DIR --data flagged.jsonl --meter \"match:as an ai\" --num-samples 16 \\
    --output marked.jsonl";

/// A flagged answer, its parts, and the beginnings that the model goes on from.
struct Asked<'a> {
    row: &'a Row,
    flagged: &'a Completion,
    text: &'a str,
    parts: Vec<Range<usize>>,
    /// The prompt, and behind it none, one, two, .. of the parts, but not all.
    beginnings: Vec<Example>,
}

/// Marks the answers.
///
/// # Errors
/// Invalid flags or files, an error of the meter or of the GPU; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.sampling.check()?;
    at_least_one("--num-samples", args.num_samples)?;
    at_least_one("--max-parts", args.max_parts)?;
    at_least_one("--max-prompt-length", args.max_prompt_length)?;
    refuse_existing(&args.output, "--output", args.overwrite)?;
    let source = Source::read(&args.data, "--data")?;
    let (model, adapter) = open::files(&args.model, output)?;
    let tokenizer = open::tokenizer(&model, output)?;
    let rows = open::chosen_rows(&source, &args.rows, output)?;
    let limits = LengthLimits { max_prompt: Some(args.max_prompt_length), ..LengthLimits::default() };
    let options = ExampleOptions::plain(Needs::Negative, limits);
    let (examples, _) = build_examples(&rows, &source.origin, &tokenizer, &options)?;
    let asked: Vec<Asked> = examples
        .iter()
        .filter_map(|example| asked(example, &rows[example.row], &tokenizer, args.max_parts).transpose())
        .collect::<Result<_>>()?;
    // Created before the work, so that a folder that cannot be written to is an error at once.
    let mut file = WholeFile::create(&args.output)?;
    let gpu = open::gpu(&args.gpu)?;
    let meter = Meter::open(&args.meter, args.meter_model.as_deref(), &gpu, output)?;
    let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, output)?;
    let beginnings: Vec<Example> = asked.iter().flat_map(|asked| asked.beginnings.clone()).collect();
    for beginning in &beginnings {
        check_context(args.sampling.max_new_tokens, beginning, &source.origin, decoder.context())?;
    }
    let wanted = (&args.sampling, args.num_samples);
    let (answers, tokens_per_second) = draw(wanted, &gpu, &decoder, &tokenizer, &beginnings, output)?;
    // All texts that the meter scores: the continued beginnings of each answer, then the answer.
    let mut texts: Vec<(&Prompt, String)> = Vec::new();
    let mut drawn = beginnings.iter().zip(&answers);
    for asked in &asked {
        for (part, (beginning, answers)) in drawn.by_ref().take(asked.beginnings.len()).enumerate() {
            let before = &asked.text[..asked.parts[part].start];
            for answer in answers {
                let more = tokenizer.decode_answer(&beginning.sampling_ids, &answer.ids)?;
                texts.push((&asked.row.prompt, format!("{before}{more}")));
            }
        }
        texts.push((&asked.row.prompt, asked.text.to_owned()));
    }
    let answers: Vec<(&Prompt, &str)> = texts.iter().map(|(prompt, text)| (*prompt, &text[..])).collect();
    let scores = block_on(meter.score(&gpu, &answers, &mut |_, _| Ok(())))?;
    let mut figures = Figures {
        ran: Ran::new(&gpu, &args.model),
        rows: asked.len(),
        marked: 0,
        parts: 0,
        at_fault: 0,
        answers: beginnings.len() * args.num_samples,
        tokens_per_second,
    };
    let mut scores = scores.into_iter();
    for asked in &asked {
        let mean = |scores: &mut dyn Iterator<Item = f64>| scores.sum::<f64>() / args.num_samples as f64;
        let mut badness: Vec<f64> =
            (0..asked.beginnings.len()).map(|_| mean(&mut scores.by_ref().take(args.num_samples))).collect();
        badness.extend(scores.next());
        let row = MarkedRow::new(asked, badness);
        figures.count(asked, &row);
        let text = serde_json::to_string(&row).map_err(|e| Error::io(&args.output, "write", e.into()))?;
        writeln!(file, "{text}").map_err(|error| Error::io(&args.output, "write", error))?;
    }
    file.commit()?;
    if figures.marked < figures.rows {
        output.warn(format_args!(
            "{} of {} rows have no weights: no part of their answer makes it worse by the meter; all of the \
             answer is pushed down",
            figures.rows - figures.marked,
            figures.rows
        ));
    }
    output.result(figures.human(), &figures)
}

/// What to ask about a row; `None` without a flagged answer.
fn asked<'a>(
    example: &Example,
    row: &'a Row,
    tokenizer: &ChatTokenizer,
    most: usize,
) -> Result<Option<Asked<'a>>> {
    let Some(flagged) = row.negative() else { return Ok(None) };
    let text = flagged.text();
    let parts = advantage::steps(text, most);
    let beginning = |part: &Range<usize>| -> Result<Example> {
        let mut sampling_ids = example.prompt_ids.clone();
        if part.start > 0 {
            let before = Completion::sampled(&row.prompt, text[..part.start].to_owned(), false);
            let mut ids = tokenizer.encode_completion(&row.prompt, &before)?;
            // The answer goes on here. Plain text always gets an end token, messages that were cut do not.
            if ids.last().is_some_and(|last| tokenizer.end_tokens().contains(last)) {
                ids.pop();
            }
            sampling_ids.extend(ids);
        }
        Ok(Example { sampling_ids, ..example.clone() })
    };
    let beginnings = parts.iter().map(beginning).collect::<Result<_>>()?;
    Ok(Some(Asked { row, flagged, text, parts, beginnings }))
}

/// A training row with weights.
#[derive(Debug, Serialize)]
struct MarkedRow<'a> {
    prompt: &'a Prompt,
    completion: &'a Completion,
    label: bool,
    /// Ranges of characters of the answer with their weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<(usize, usize, f32)>,
    #[serde(skip_serializing_if = "<[Completion]>::is_empty")]
    anchors: &'a [Completion],
    /// The mean score behind none, one, two, .. of the answer's parts; the last is its own.
    badness: Vec<f64>,
    /// The row's line in --data.
    line: usize,
}

impl<'a> MarkedRow<'a> {
    fn new(asked: &'a Asked, badness: Vec<f64>) -> Self {
        let characters = |bytes: usize| asked.text[..bytes].chars().count();
        let weights = advantage::weights(&badness).unwrap_or_default();
        let marks = asked.parts.iter().zip(weights).filter(|(_, weight)| *weight > 0.0);
        let marks = marks.map(|(part, weight)| {
            // Without the white space before it, which belongs to what came before.
            let text = &asked.text[part.clone()];
            let start = part.start + text.len() - text.trim_start().len();
            (characters(start), characters(part.end), weight)
        });
        Self {
            prompt: &asked.row.prompt,
            completion: asked.flagged,
            label: false,
            weights: marks.collect(),
            anchors: &asked.row.anchors,
            badness,
            line: asked.row.line,
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ran: Ran,
    /// Rows written.
    rows: usize,
    /// Rows with weights.
    marked: usize,
    /// Parts of all answers, and those that got a weight.
    parts: usize,
    at_fault: usize,
    /// Continuations sampled.
    answers: usize,
    /// Sampled tokens per second.
    tokens_per_second: f64,
}

impl Figures {
    fn count(&mut self, asked: &Asked, row: &MarkedRow) {
        self.marked += usize::from(!row.weights.is_empty());
        self.parts += asked.parts.len();
        self.at_fault += row.weights.len();
    }

    fn human(&self) -> String {
        let Self { rows, marked, parts, at_fault, answers, tokens_per_second: rate, .. } = self;
        format!(
            "{marked} of {rows} rows marked: {at_fault} of {parts} parts are at fault, by {answers} \
             continuations\n{rate:.1} tokens/s, peak GPU memory {}",
            self.ran.memory()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aweigh::data::parse_rows;
    use aweigh::tiny;

    /// The model goes on behind a beginning, not behind an end token: of messages and of plain text.
    #[test]
    fn beginnings_have_no_end_token() {
        let tokenizer = tiny::model().tokenizer().expect("a tokenizer");
        let plain = r#"{"prompt": "My screen", "completion": "is broken. You fool.", "label": false}"#;
        let messages = r#"{"prompt": [{"role": "user", "content": "Hi."}], "label": false,
            "completion": [{"role": "assistant", "content": "Hello. You fool. Go."}]}"#;
        let options = ExampleOptions::plain(Needs::Negative, LengthLimits::default());
        for (line, parts) in [(plain, 2), (messages, 3)] {
            let line = line.replace('\n', " ");
            let rows = parse_rows(line.as_bytes(), "rows.jsonl", None).expect("rows").rows;
            let (examples, _) = build_examples(&rows, "rows.jsonl", &tokenizer, &options).expect("examples");
            let example = &examples[0];
            let asked = asked(example, &rows[0], &tokenizer, 8).expect("parts").expect("a flag");
            assert_eq!((asked.parts.len(), asked.beginnings.len()), (parts, parts));
            assert_eq!(asked.beginnings[0].sampling_ids, example.prompt_ids);
            for (beginning, part) in asked.beginnings.iter().zip(&asked.parts) {
                let more = &beginning.sampling_ids[example.prompt_ids.len()..];
                assert!(!more.iter().any(|id| tokenizer.end_tokens().contains(id)), "{more:?}");
                let text = tokenizer.decode_answer(&example.prompt_ids, more).expect("text");
                assert_eq!(text.trim(), &asked.text[..part.start]);
            }
        }
    }
}
