//! `aweigh sample`: samples answers to the prompts of a file.

use std::io::Write;
use std::path::PathBuf;

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, ModelArgs, RowArgs, SamplingArgs, WeightArgs, at_least_one};
use crate::open::{self, Ran};
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Course, Unit};
use aweigh::config::BUILT_IN_EXAMPLES;
use aweigh::data::{
    ChatTokenizer, Completion, Example, ExampleOptions, LengthLimits, Needs, Prompt, REFUSALS, Row, Rule,
    build_examples, parse_worked_examples,
};
use aweigh::error::{Error, Result};
use aweigh::files::{Source, WholeFile, refuse_existing};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::sample::sampling_params;
use aweigh::sample::{self, Answer, Request};

/// Sample answers to the prompts of a file.
///
/// The file can be in any of align's data formats; answers in it are ignored. Each line of the output has one
/// answer: its prompt, text and token ids, and whether it ended with an end token. align reads the output
/// with --samples-file. With --unwanted the lines are training rows for align's --train.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Prompts: JSONL (may be gzipped) with a "prompt" per line, a string or a list of messages
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// Maximum length of a prompt; longer prompts lose their beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 512, help_heading = "Data")]
    pub max_prompt_length: usize,
    /// Number of answers per prompt
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Sampling")]
    pub num_samples: usize,
    /// System message for every prompt, as for align's anchors
    #[arg(long, visible_alias = "system", value_name = "TEXT", help_heading = "Sampling")]
    pub safety_instruction: Option<String>,
    /// Worked examples before every prompt, as for align's anchors: a JSON file with a list of messages, or
    /// "refusals" for the built-in ones
    #[arg(long, value_name = "FILE|refusals", help_heading = "Sampling")]
    pub anchor_examples: Option<String>,
    /// How tokens are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Write training rows instead of all answers: for each prompt that got an answer for which this rule
    /// holds, the first such answer, flagged, and the others as anchors. The rule has the forms of align's
    /// --unwanted, such as "match:REGEX"
    #[arg(long, value_name = "RULE", help_heading = "Output")]
    pub unwanted: Option<Rule>,
    /// JSONL file for the answers. It appears only when it is complete
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
  aweigh sample --model DIR --data prompts.jsonl --output answers.jsonl
  aweigh sample --model DIR --adapter run/adapter --data prompts.jsonl --temperature 0 --output greedy.jsonl
  aweigh sample --model DIR --data flagged.jsonl --num-samples 4 --system \"Be careful.\" \\
    --output anchors.jsonl
  aweigh sample --model DIR --data prompts.jsonl --num-samples 4 --unwanted \"match:as an ai\" \\
    --output flagged.jsonl";

/// Samples answers.
///
/// # Errors
/// Invalid flags or files, or a GPU error; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.sampling.check()?;
    at_least_one("--num-samples", args.num_samples)?;
    at_least_one("--max-prompt-length", args.max_prompt_length)?;
    refuse_existing(&args.output, "--output", args.overwrite)?;
    let source = Source::read(&args.data, "--data")?;
    let (model, adapter) = open::files(&args.model, output)?;
    let tokenizer = open::tokenizer(&model, output)?;
    let prompts = prompts(&args, &source, &tokenizer, output)?;
    if prompts[0].prompt.is_conversational() {
        open::note_of_system(&tokenizer, args.safety_instruction.as_deref().unwrap_or_default(), output);
    }
    // Created before the work, so that a folder that cannot be written to is an error at once.
    let mut file = WholeFile::create(&args.output)?;
    let gpu = open::gpu(&args.gpu)?;
    let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, output)?;
    for prompt in &prompts {
        check_context(args.sampling.max_new_tokens, prompt, &source.origin, decoder.context())?;
    }
    let wanted = (&args.sampling, args.num_samples);
    let (answers, tokens_per_second) = draw(wanted, &gpu, &decoder, &tokenizer, &prompts, output)?;
    let mut figures = Figures::new(Ran::new(&gpu, &args.model), prompts.len(), tokens_per_second);
    for (prompt, answers) in prompts.iter().zip(&answers) {
        let row = |(sample, answer)| SampledRow::new(prompt, sample, answer, &tokenizer);
        let rows = answers.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        rows.iter().for_each(|row| figures.count(row));
        match &args.unwanted {
            None => rows.iter().try_for_each(|row| line(&mut file, &args, row))?,
            Some(rule) => {
                if let Some(row) = FlaggedRow::of(rows, rule) {
                    *figures.flagged.get_or_insert(0) += 1;
                    line(&mut file, &args, &row)?;
                }
            }
        }
    }
    if let (Some(rule), None) = (&args.unwanted, figures.flagged) {
        let expected = format!("an answer for which {rule} holds");
        let found = format!("none in {}", figures.answers);
        let fix = "raise --num-samples, give other prompts, or change the rule";
        return Err(Error::input("--unwanted", expected, found, fix));
    }
    file.commit()?;
    output.result(figures.human(), &figures)
}

/// Writes a row as a line of the output.
fn line(file: &mut WholeFile, args: &Args, row: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(row).map_err(|error| Error::io(&args.output, "write", error.into()))?;
    writeln!(file, "{text}").map_err(|error| Error::io(&args.output, "write", error))
}

/// The file's prompts as token ids.
fn prompts(args: &Args, source: &Source, tokenizer: &ChatTokenizer, output: &Output) -> Result<Vec<Example>> {
    let rows = open::chosen_rows(source, &args.rows, output)?;
    let rows: Vec<Row> = rows.into_iter().map(Row::without_answers).collect();
    let limits = LengthLimits { max_prompt: Some(args.max_prompt_length), ..LengthLimits::default() };
    let instruction = args.safety_instruction.clone().filter(|text| !text.is_empty());
    let examples = match args.anchor_examples.as_deref() {
        None => Vec::new(),
        Some(BUILT_IN_EXAMPLES) => parse_worked_examples(REFUSALS.1, REFUSALS.0)?,
        Some(path) => {
            let source = Source::read(path.as_ref(), "--anchor-examples")?;
            parse_worked_examples(&source.bytes, &source.origin)?
        }
    };
    let options =
        ExampleOptions { needs: Needs::Prompt, limits, instruction, harmful: None, anchors: 0, examples };
    let (examples, counts) = build_examples(&rows, &source.origin, tokenizer, &options)?;
    if counts.prompts_cut > 0 {
        output.warn(format_args!(
            "{}: {} prompts of more than {} tokens lost their beginning (--max-prompt-length)",
            source.origin, counts.prompts_cut, args.max_prompt_length
        ));
    }
    Ok(examples)
}

/// Fails if a prompt leaves too little of the model's context for an answer of `answer` tokens.
///
/// # Errors
/// [`Error::Input`] with the prompt's line.
pub fn check_context(answer: usize, prompt: &Example, origin: &str, context: usize) -> Result<()> {
    let asked = prompt.sampling_ids.len();
    if asked + answer <= context {
        return Ok(());
    }
    let expected = format!("at most {context} tokens, the model's context, for prompt and answer");
    let found = format!("a prompt of {asked} tokens and --max-new-tokens {answer}");
    let fix = "lower --max-new-tokens, or --max-prompt-length so that prompts are cut";
    Err(Error::input(format!("{origin}:{}", prompt.line), expected, found, fix))
}

/// Samples so many answers to every prompt. Also returns the speed, in sampled tokens per second.
///
/// # Errors
/// GPU errors, and [`Error::Interrupted`].
pub fn draw(
    (sampling, num_samples): (&SamplingArgs, usize),
    gpu: &Gpu,
    decoder: &Decoder,
    tokenizer: &ChatTokenizer,
    prompts: &[Example],
    output: &Output,
) -> Result<(Vec<Vec<Answer>>, f64)> {
    let settings = sampling_params(&sampling.to_config(), sampling.seed, tokenizer.end_tokens());
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| Request {
            prompt: &prompt.sampling_ids,
            first_sample: 0,
            samples: num_samples,
            index: index as u32,
        })
        .collect();
    let wanted = prompts.len() * num_samples;
    let mut progress = output.progress("sample", wanted as u64, Unit::Items).told();
    let mut course = Course::new(1, wanted, sampling.max_new_tokens);
    let mut advance = |answers: usize, tokens: usize| {
        course.drew(answers, tokens, &mut progress);
        interrupt::check()
    };
    let answers =
        block_on(sample::generate(gpu, decoder, decoder.policy(), &requests, &settings, &mut advance))?;
    let tokens_per_second = progress.tokens_per_second();
    progress.finish();
    Ok((answers, tokens_per_second))
}

/// A line of the output: prompt and completion as in TRL, and where they come from.
#[derive(Debug, Serialize)]
struct SampledRow<'a> {
    prompt: &'a Prompt,
    completion: Completion,
    /// The answer's number among those to its prompt, from 0.
    sample: usize,
    /// The prompt's line in --data.
    line: usize,
    /// Tokens of the answer, end-of-turn token included.
    num_tokens: usize,
    /// Whether it ended with an end token, not at --max-new-tokens.
    ended: bool,
    /// The sampled token ids, which cannot be recovered from the text.
    ids: &'a [u32],
}

impl<'a> SampledRow<'a> {
    fn new(
        prompt: &'a Example,
        sample: usize,
        answer: &'a Answer,
        tokenizer: &ChatTokenizer,
    ) -> Result<Self> {
        let text = tokenizer.decode_answer(&prompt.sampling_ids, &answer.ids)?;
        Ok(Self {
            prompt: &prompt.prompt,
            completion: Completion::sampled(&prompt.prompt, text, answer.ended),
            sample,
            line: prompt.line,
            num_tokens: answer.ids.len(),
            ended: answer.ended,
            ids: &answer.ids,
        })
    }
}

/// A training row: a flagged answer, and others of the same prompt as anchors.
#[derive(Debug, Serialize)]
struct FlaggedRow<'a> {
    prompt: &'a Prompt,
    completion: Completion,
    label: bool,
    /// Answers that are not unwanted. Without any, align samples anchors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    anchors: Vec<Completion>,
    /// The prompt's line in --data.
    line: usize,
}

impl<'a> FlaggedRow<'a> {
    /// The row of a prompt's answers; `None` if none is unwanted.
    fn of(rows: Vec<SampledRow<'a>>, unwanted: &Rule) -> Option<Self> {
        let (prompt, line) = rows.first().map(|row| (row.prompt, row.line))?;
        let completions = rows.into_iter().map(|row| row.completion);
        let (flagged, others): (Vec<_>, Vec<_>) = completions.partition(|c| unwanted.holds(c.text()));
        let completion = flagged.into_iter().next()?;
        let anchors = others.into_iter().filter(|anchor| !anchor.text().trim().is_empty()).collect();
        Some(Self { prompt, completion, label: false, anchors, line })
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ran: Ran,
    prompts: usize,
    answers: usize,
    /// Sampled tokens, end-of-turn tokens included.
    tokens: usize,
    /// Answers that ended with an end token.
    ended: usize,
    /// Answers that are empty or only whitespace.
    empty: usize,
    /// With --unwanted: training rows written, one for each prompt with an unwanted answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    flagged: Option<usize>,
    /// Sampled tokens per second; the time includes the prompts' forward passes.
    tokens_per_second: f64,
}

impl Figures {
    fn new(ran: Ran, prompts: usize, tokens_per_second: f64) -> Self {
        Self { ran, prompts, answers: 0, tokens: 0, ended: 0, empty: 0, flagged: None, tokens_per_second }
    }

    fn count(&mut self, row: &SampledRow) {
        self.answers += 1;
        self.tokens += row.num_tokens;
        self.ended += usize::from(row.ended);
        self.empty += usize::from(row.completion.text().trim().is_empty());
    }

    fn human(&self) -> String {
        let Self { prompts, answers, tokens, ended, empty, .. } = self;
        let cut = answers - ended;
        let rate = self.tokens_per_second;
        let rows =
            self.flagged.map(|rows| format!("\n{rows} training rows: prompts with an unwanted answer"));
        format!(
            "{answers} answers to {prompts} prompts, {tokens} tokens: {ended} ended with an end token, {cut} \
             were cut at --max-new-tokens, {empty} are empty{}\n{rate:.1} tokens/s, peak GPU memory {}",
            rows.unwrap_or_default(),
            self.ran.memory()
        )
    }
}
