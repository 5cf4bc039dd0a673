//! `aweigh score`: log-probs of given answers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use pollster::block_on;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{GpuArgs, ModelArgs, RowArgs, WeightArgs, at_least_one};
use crate::open::{self, Ran};
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::Unit;
use crate::terminal::text::table;
use aweigh::data::jsonl::ReadLimits;
use aweigh::data::objects::for_each_object;
use aweigh::data::{
    ChatTokenizer, Example, ExampleOptions, Group, LengthLimits, Needs, Row, build_examples, token_remarks,
};
use aweigh::error::{Error, Result};
use aweigh::files::{Source, WholeFile, refuse_existing};
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, DecoderConfig};
use aweigh::score;

/// Compute the log-probs of given answers.
///
/// Every row is written again with "logp", the sum of the log-probs of the answer's tokens in nats, and
/// "num_tokens", their number; both include the end-of-turn token. A row with "chosen" and "rejected" gets
/// "chosen_logp", "chosen_num_tokens", "rejected_logp" and "rejected_num_tokens". Rows without an answer are
/// left out.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Answers to score: JSONL (may be gzipped) with prompt + completion or prompt + chosen + rejected per
    /// line
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// Maximum number of packed tokens per batch. Lower it if memory runs out
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, help_heading = "Data")]
    pub max_tokens_per_batch: usize,
    /// JSONL file for the rows; without it they go to stdout. The file appears only when it is complete
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Replace --output if it exists
    #[arg(long, requires = "output", help_heading = "Output")]
    pub overwrite: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh score --model DIR --data answers.jsonl > scored.jsonl
  aweigh score --model DIR --adapter run/adapter --data held-out.jsonl --json --output scored.jsonl";

/// Scores answers.
///
/// # Errors
/// Invalid flags or files, or a GPU error; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    at_least_one("--max-samples", args.rows.max_samples.unwrap_or(1))?;
    at_least_one("--max-tokens-per-batch", args.max_tokens_per_batch)?;
    match &args.output {
        Some(path) => refuse_existing(path, "--output", args.overwrite)?,
        None if output.json() => {
            let fix = "add --output FILE: with --json stdout holds the figures";
            return Err(Error::input("--output", "a file for the rows", "none", fix));
        }
        None => {}
    }
    let source = Source::read(&args.data, "--data")?;
    let (model, adapter) = open::files(&args.model, output)?;
    let (answers, skipped) = answers(&args.rows, &source, &open::tokenizer(&model, output)?, output)?;
    if skipped > 0 {
        output.note(format_args!("{}: left out {skipped} rows without an answer", source.origin));
    }
    // Created before the work, so that a folder that cannot be written to is an error at once.
    let mut file = args.output.as_deref().map(WholeFile::create).transpose()?;
    let gpu = open::gpu(&args.gpu)?;
    let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, output)?;
    let budget = args.max_tokens_per_batch;
    let (scored, tokens_per_second) = score(&gpu, &decoder, &source.origin, answers, budget, output)?;
    write_rows(&source, &scored, |line| match (&mut file, &args.output) {
        (Some(file), Some(path)) => {
            file.write_all(line.as_bytes()).map_err(|error| Error::io(path, "write", error))
        }
        _ => output.text(line),
    })?;
    let ran = Ran::new(&gpu, &args.model);
    let figures = Figures::new(ran, &scored, skipped, tokens_per_second);
    match file {
        Some(file) => {
            file.commit()?;
            output.result(figures.human(), &figures)
        }
        None => {
            output.note(figures.human());
            Ok(())
        }
    }
}

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// A "completion" without a label.
    Completion,
    /// A "completion" labelled true.
    Approved,
    /// A "completion" labelled false.
    Flagged,
    Chosen,
    Rejected,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Completion, Self::Approved, Self::Flagged, Self::Chosen, Self::Rejected];

    fn name(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Approved => "approved",
            Self::Flagged => "flagged",
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
        }
    }

    /// The field of a row that holds such an answer.
    fn field(self) -> &'static str {
        match self {
            Self::Completion | Self::Approved | Self::Flagged => "completion",
            Self::Chosen | Self::Rejected => self.name(),
        }
    }

    /// The key of `what` for this answer in the output row: `logp`, or in a pair `chosen_logp`.
    fn key(self, what: &str) -> String {
        match self {
            Self::Chosen | Self::Rejected => format!("{}_{what}", self.name()),
            _ => what.to_owned(),
        }
    }
}

/// The tokens of a row's prompt and of its one or two answers.
struct Answers {
    line: usize,
    prompt: Vec<u32>,
    answers: Vec<(Kind, Vec<u32>)>,
}

impl Answers {
    fn new(example: Example, row: &Row) -> Self {
        let kinds = match (row.chosen.is_some(), row.label) {
            (true, _) => [Kind::Chosen, Kind::Rejected],
            (false, Some(_)) => [Kind::Approved, Kind::Flagged],
            (false, None) => [Kind::Completion; 2],
        };
        let answers = kinds.into_iter().zip([example.chosen_ids, example.negative_ids]);
        let answers = answers.filter_map(|(kind, ids)| Some((kind, ids?))).collect();
        Self { line: example.line, prompt: example.prompt_ids, answers }
    }

    /// Fails if the prompt and an answer exceed the model's context or have tokens that the model lacks.
    fn check(&self, origin: &str, model: &DecoderConfig) -> Result<()> {
        let (place, context) = (format!("{origin}:{}", self.line), model.context());
        model.check_ids(&place, &self.prompt)?;
        for (kind, ids) in &self.answers {
            model.check_ids(&place, ids)?;
            if self.prompt.len() + ids.len() > context {
                let expected = format!("at most {context} tokens, the model's context");
                let found = format!(
                    "{} tokens of the prompt and {} of \"{}\"",
                    self.prompt.len(),
                    ids.len(),
                    kind.field()
                );
                let fix = "shorten the row, or leave it out";
                return Err(Error::input(place, expected, found, fix));
            }
        }
        Ok(())
    }
}

/// The rows' answers as token ids, and the number of rows without an answer.
fn answers(
    chosen: &RowArgs,
    source: &Source,
    tokenizer: &ChatTokenizer,
    output: &Output,
) -> Result<(Vec<Answers>, usize)> {
    let mut rows = open::rows(source, chosen.split.as_deref(), chosen.label.as_ref(), output)?;
    let all = rows.len();
    rows.retain(|row| row.positive().is_some() || row.negative().is_some());
    let skipped = all - rows.len();
    rows.truncate(chosen.max_samples.unwrap_or(usize::MAX));
    let options = ExampleOptions::plain(Needs::Any, LengthLimits::default());
    let (examples, _) = build_examples(&rows, &source.origin, tokenizer, &options)?;
    token_remarks(&source.origin, &examples, tokenizer).iter().for_each(|remark| output.warn(remark));
    let answers = examples.into_iter().map(|example| {
        let row = &rows[example.row];
        Answers::new(example, row)
    });
    Ok((answers.collect(), skipped))
}

/// One row's scores.
struct Scored {
    line: usize,
    answers: Vec<Score>,
}

#[derive(Clone, Copy)]
struct Score {
    kind: Kind,
    /// In nats.
    logp: f64,
    num_tokens: usize,
}

impl Score {
    fn per_token(self) -> f64 {
        self.logp / self.num_tokens as f64
    }
}

/// Scores all answers of the file `origin`. Also returns the speed, in packed tokens per second.
fn score(
    gpu: &Gpu,
    decoder: &Decoder,
    origin: &str,
    answers: Vec<Answers>,
    budget: usize,
    output: &Output,
) -> Result<(Vec<Scored>, f64)> {
    fn group(row: &Answers) -> Vec<&[u32]> {
        row.answers.iter().map(|(_, ids)| ids.as_slice()).collect()
    }
    answers.iter().try_for_each(|row| row.check(origin, decoder.config()))?;
    let groups: Vec<Group> =
        answers.iter().map(|row| Group { prompt: &row.prompt, responses: group(row) }).collect();
    let mut progress = output.progress("score", groups.len() as u64, Unit::Items);
    let mut advance = |rows: usize, tokens: usize| {
        progress.advance(rows as u64, tokens as u64);
        interrupt::check()
    };
    let scored = block_on(score::score(gpu, decoder, decoder.policy(), &groups, budget, &mut advance))?;
    let tokens_per_second = progress.tokens_per_second();
    progress.finish();
    let rows = answers.iter().zip(scored).map(|(row, scored)| {
        let answers = row.answers.iter().zip(scored).map(|((kind, ids), scored)| Score {
            kind: *kind,
            // Rounded to six decimals: f32 is not more precise.
            logp: (scored.token_logps.iter().copied().map(f64::from).sum::<f64>() * 1e6).round() / 1e6,
            num_tokens: ids.len(),
        });
        Scored { line: row.line, answers: answers.collect() }
    });
    let rows: Vec<Scored> = rows.collect();
    match rows.iter().find(|row| row.answers.iter().any(|score| !score.logp.is_finite())) {
        Some(row) => Err(Error::not_finite(format!("{origin}:{}", row.line), "log-probs")),
        None => Ok((rows, tokens_per_second)),
    }
}

/// The rows of `source` that have answers, each as a line of JSON with its log-probs, as the command writes
/// them. `budget` is the largest number of packed tokens in a batch.
///
/// # Errors
/// As [`run`].
pub fn lines(
    gpu: &Gpu,
    decoder: &Decoder,
    tokenizer: &ChatTokenizer,
    source: &Source,
    budget: usize,
    output: &Output,
) -> Result<Vec<String>> {
    let (answers, _) = answers(&RowArgs::default(), source, tokenizer, output)?;
    let (scored, _) = score(gpu, decoder, &source.origin, answers, budget, output)?;
    let mut lines = Vec::new();
    write_rows(source, &scored, |line| {
        lines.push(line);
        Ok(())
    })?;
    Ok(lines)
}

/// Reads the file again and calls `each` with every scored row and its scores, as a line of JSON. A row keeps
/// all its keys this way, and parsed rows do not stay in memory.
fn write_rows(source: &Source, scored: &[Scored], mut each: impl FnMut(String) -> Result<()>) -> Result<()> {
    let mut scored = scored.iter().peekable();
    for_each_object(&source.bytes, &source.origin, ReadLimits::default(), |line, mut row| {
        match scored.next_if(|row| row.line == line) {
            Some(found) => {
                add_scores(&mut row, &found.answers);
                each(format!("{}\n", Value::Object(row)))
            }
            None => Ok(()),
        }
    })
}

/// Adds the scores to a row. They replace scores from an earlier run.
fn add_scores(row: &mut Map<String, Value>, scores: &[Score]) {
    for score in scores {
        row.insert(score.kind.key("logp"), score.logp.into());
        row.insert(score.kind.key("num_tokens"), score.num_tokens.into());
    }
}

/// Figures of all answers of one kind.
#[derive(Clone, Debug, Default, Serialize)]
struct KindFigures {
    rows: usize,
    /// End-of-turn tokens included.
    tokens: usize,
    /// Mean over rows of the summed log-prob, in nats.
    mean_logp: f64,
    /// Mean log-prob over all tokens, in nats.
    mean_logp_per_token: f64,
    /// exp(-sum of log-probs / tokens): every token has the same weight.
    perplexity: f64,
}

impl KindFigures {
    fn new(scores: &[Score]) -> Self {
        let rows = scores.len() as f64;
        let tokens: usize = scores.iter().map(|score| score.num_tokens).sum();
        let sum: f64 = scores.iter().map(|score| score.logp).sum();
        Self {
            rows: scores.len(),
            tokens,
            mean_logp: sum / rows,
            mean_logp_per_token: sum / tokens as f64,
            perplexity: (-sum / tokens as f64).exp(),
        }
    }
}

/// How often the chosen answer of a pair is more likely than the rejected one.
#[derive(Clone, Debug, Serialize)]
struct PairFigures {
    pairs: usize,
    /// Share of pairs with the higher summed log-prob on the chosen side.
    accuracy: f64,
    /// The same per token.
    accuracy_per_token: f64,
}

impl PairFigures {
    fn new(scored: &[Scored]) -> Option<Self> {
        let pairs: Vec<[Score; 2]> =
            scored.iter().filter_map(|row| row.answers.as_slice().try_into().ok()).collect();
        let share = |better: &dyn Fn(&[Score; 2]) -> bool| {
            pairs.iter().filter(|pair| better(pair)).count() as f64 / pairs.len() as f64
        };
        (!pairs.is_empty()).then(|| Self {
            pairs: pairs.len(),
            accuracy: share(&|[chosen, rejected]| chosen.logp > rejected.logp),
            accuracy_per_token: share(&|[chosen, rejected]| chosen.per_token() > rejected.per_token()),
        })
    }
}

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ran: Ran,
    rows: usize,
    /// Answer tokens.
    tokens: usize,
    skipped_rows: usize,
    /// Tokens that went through the model, prompts included.
    tokens_per_second: f64,
    answers: BTreeMap<Kind, KindFigures>,
    pairs: Option<PairFigures>,
}

impl Figures {
    fn new(ran: Ran, scored: &[Scored], skipped_rows: usize, tokens_per_second: f64) -> Self {
        let of_kind = |kind| -> Vec<Score> {
            scored.iter().flat_map(|row| &row.answers).filter(|score| score.kind == kind).copied().collect()
        };
        let kinds = Kind::ALL.map(|kind| (kind, of_kind(kind)));
        Self {
            ran,
            rows: scored.len(),
            tokens: scored.iter().flat_map(|row| &row.answers).map(|score| score.num_tokens).sum(),
            skipped_rows,
            tokens_per_second,
            answers: kinds
                .into_iter()
                .filter(|(_, scores)| !scores.is_empty())
                .map(|(kind, scores)| (kind, KindFigures::new(&scores)))
                .collect(),
            pairs: PairFigures::new(scored),
        }
    }

    fn human(&self) -> String {
        let row = |(kind, f): (&Kind, &KindFigures)| {
            vec![
                kind.name().to_owned(),
                f.rows.to_string(),
                f.tokens.to_string(),
                format!("{:.3}", f.mean_logp),
                format!("{:.4}", f.mean_logp_per_token),
                format!("{:.3}", f.perplexity),
            ]
        };
        let headers = ["answers", "rows", "tokens", "mean logp", "per token", "perplexity"];
        let mut text = table(&headers, &self.answers.iter().map(row).collect::<Vec<_>>());
        if let Some(pairs) = &self.pairs {
            text += &format!(
                "\nthe chosen answer is more likely in {:.1}% of the pairs; by log-prob per token in {:.1}%",
                100.0 * pairs.accuracy,
                100.0 * pairs.accuracy_per_token
            );
        }
        text + &format!("\n{:.0} tokens/s, peak GPU memory {}", self.tokens_per_second, self.ran.memory())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(text: &str) -> Source {
        Source { origin: "a.jsonl".into(), bytes: text.into() }
    }

    fn scored(line: usize, answers: &[(Kind, f64, usize)]) -> Scored {
        let score = |&(kind, logp, num_tokens): &_| Score { kind, logp, num_tokens };
        Scored { line, answers: answers.iter().map(score).collect() }
    }

    #[test]
    fn a_row_keeps_what_it_has_and_gets_its_scores() {
        let text = "{\"prompt\": \"a\", \"completion\": \"b\", \"id\": 7, \"logp\": 0}\n\n{\"prompt\": \
                    \"c\"}\n\
                    {\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
        let rows = [
            scored(1, &[(Kind::Flagged, -1.5, 2)]),
            scored(4, &[(Kind::Chosen, -3.0, 3), (Kind::Rejected, -4.0, 5)]),
        ];
        let mut written = Vec::new();
        write_rows(&source(text), &rows, |line| {
            written.push(serde_json::from_str::<Value>(&line).unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(
            written,
            [
                json!({"prompt": "a", "completion": "b", "id": 7, "logp": -1.5, "num_tokens": 2}),
                json!({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_logp": -3.0,
                    "chosen_num_tokens": 3, "rejected_logp": -4.0, "rejected_num_tokens": 5}),
            ]
        );
    }

    #[test]
    fn figures_weigh_rows_and_tokens() {
        let rows = [
            scored(1, &[(Kind::Chosen, -1.0, 1), (Kind::Rejected, -2.0, 4)]),
            scored(2, &[(Kind::Chosen, -9.0, 4), (Kind::Rejected, -8.0, 1)]),
        ];
        let ran = Ran { gpu: "g".into(), model: "m".into(), adapter: None, memory_peak_bytes: 1 };
        let figures = Figures::new(ran, &rows, 0, 1.0);
        let chosen = &figures.answers[&Kind::Chosen];
        assert_eq!((chosen.rows, chosen.tokens, chosen.mean_logp), (2, 5, -5.0));
        assert_eq!(chosen.mean_logp_per_token, -2.0);
        assert_eq!(chosen.perplexity, 2f64.exp());
        let pairs = figures.pairs.unwrap();
        assert_eq!((pairs.pairs, pairs.accuracy, pairs.accuracy_per_token), (2, 0.5, 0.5));
        assert_eq!(figures.tokens, 10);
    }
}
