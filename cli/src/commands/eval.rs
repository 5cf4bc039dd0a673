//! `aweigh eval`: compares models and adapters on the same prompts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, RowArgs, SamplingArgs, WeightArgs, at_least_one};
use crate::meters::{Meter, Spec};
use crate::open;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Course, Unit as Counted};
use crate::terminal::text::table;
use aweigh::data::packing::Group;
use aweigh::data::{
    ChatTokenizer, Example, ExampleOptions, LengthLimits, Needs, Prompt, Row, build_examples,
};
use aweigh::error::{Error, Result};
use aweigh::eval::compare::{
    Answers, Comparison, Figure, LEAST_PROMPTS, Metered, Unit, Verdict, comparisons, figures,
};
use aweigh::eval::stats::Estimate;
use aweigh::files::{AdapterFiles, Model, Source, refuse_existing, write_whole};
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, ModelBytes};
use aweigh::nn::Pass;
use aweigh::sample::sampling_params;
use aweigh::sample::{self, Request};
use aweigh::score::{Scored, score};

/// Compare models and adapters by their answers to the same prompts.
///
/// Each candidate answers every prompt with the same seed. Meters score how bad the answers are; a candidate
/// wins on a prompt if its score is lower than the first candidate's. Intervals are 95% bootstrap intervals
/// over the prompts (1,000 resamples). If rows have a good or a flagged answer, its perplexity or log-prob is
/// reported too. No single meter is a reliable measure of harm: use several, together with the perplexity of
/// ordinary good answers.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to compare: "base" for --model without an adapter, an adapter, the folder of a run, or another
    /// model; NAME=... sets the name in the table
    #[arg(required = true, value_name = "CANDIDATE")]
    pub candidates: Vec<String>,
    /// The model: a directory, a GGUF file, a name on the Hugging Face Hub, or "tiny"
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny", help_heading = "Model")]
    pub model: String,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Held-out prompts, in any of align's data formats; may be given several times. NAME=FILE names the set
    #[arg(long, required = true, value_name = "FILE", help_heading = "Data")]
    pub data: Vec<String>,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// Maximum length of a prompt; longer prompts lose their beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 512, help_heading = "Data")]
    pub max_prompt_length: usize,
    /// Measure of how bad an answer is: lexicon or lexicon:FILE (listed words per hundred words), judge:DIR
    /// (written by "aweigh judge train"), refusal, match:REGEX or not:RULE (1 if the answer refuses, matches,
    /// or does not; as align's --anchor-filter), command:LINE (a shell command that reads a {"prompt",
    /// "answer"} per line and prints a number per line, higher is worse), http:URL (an OpenAI-compatible
    /// endpoint, with the key in OPENAI_API_KEY), tiny-hostile and tiny-topic (only for the built-in model's
    /// help desk). May be given several times [default: lexicon]
    #[arg(long, value_name = "METER", help_heading = "Meters")]
    pub meter: Vec<Spec>,
    /// Name of the grading model at the http meter's endpoint
    #[arg(long, value_name = "NAME", help_heading = "Meters")]
    pub meter_model: Option<String>,
    /// Number of answers per prompt
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Sampling")]
    pub num_samples: usize,
    /// How tokens are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// JSON file for all figures and each candidate's first answer to every prompt; "aweigh report --eval"
    /// shows it
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Replace --output if it exists
    #[arg(long, requires = "output", help_heading = "Output")]
    pub overwrite: bool,
    /// End with exit code 1 if a candidate's figure is larger, for CI: a meter as the table names it, and a
    /// number (a share from 0 to 1), as in refusal=0.1. The first candidate counts only if it is the only
    /// one. May be given several times
    #[arg(long, value_name = "METER=VALUE", value_parser = limit, help_heading = "Limits")]
    pub fail_above: Vec<(String, f64)>,
    /// End with exit code 1 if a meter shows a candidate to be worse than the first one, beyond its interval
    #[arg(long, help_heading = "Limits")]
    pub fail_if_worse: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh eval --model DIR --data held-out.jsonl base run
  aweigh eval --model DIR --data harmful=prompts.jsonl --data ordinary=benign.jsonl \\
    --meter lexicon --meter judge:judge base d2o=run dpo=run2
  aweigh eval --model tiny --data held-out.jsonl --meter tiny-hostile --meter tiny-topic base demo-run
  aweigh eval --model DIR --data held-out.jsonl --meter refusal --fail-above refusal=0.1 --fail-if-worse \\
    base run";

/// Reads `METER=VALUE`.
fn limit(text: &str) -> std::result::Result<(String, f64), String> {
    let (meter, value) = text.rsplit_once('=').ok_or("expected METER=VALUE, as in refusal=0.1")?;
    let value = value.parse().ok().filter(|value: &f64| value.is_finite());
    value.map(|value| (meter.to_owned(), value)).ok_or_else(|| "expected a number after the =".into())
}

/// Packed tokens per scoring batch.
const BUDGET: usize = 2048;

/// A model to compare, and its name in the table.
struct Candidate {
    name: String,
    kind: Kind,
}

enum Kind {
    Base,
    Adapter(Box<AdapterFiles>),
    Model(Box<Model>),
}

/// The name and the rest of `NAME=REST`. Without a name, it is the rest's last path component without .jsonl
/// and .gz.
fn named(text: &str) -> (String, &str) {
    match text.split_once('=').filter(|_| !Path::new(text).exists()) {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => (name.into(), rest),
        _ => {
            let path = Path::new(text);
            let stem = path.file_name().map_or(text.into(), |name| name.to_string_lossy().into_owned());
            (stem.trim_end_matches(".gz").trim_end_matches(".jsonl").into(), text)
        }
    }
}

impl Candidate {
    /// `base` is the model that adapters are applied to.
    fn open(text: &str, base: &Model, output: &Output) -> Result<Self> {
        let (name, place) = named(text);
        let path = Path::new(place);
        let adapter =
            |path: &Path| Ok(Kind::Adapter(Box::new(open::adapter(path, "CANDIDATE", base, output)?)));
        let model = |name: &str| Ok(Kind::Model(Box::new(open::model(name, true, output)?)));
        let kind = match place {
            "base" => Kind::Base,
            _ if path.join("adapter_config.json").is_file() => adapter(path)?,
            _ if path.join("adapter").is_dir() => adapter(&path.join("adapter"))?,
            _ if path.join("model").is_dir() => model(&path.join("model").display().to_string())?,
            _ => model(place)?,
        };
        Ok(Self { name, kind })
    }

    /// Loads it onto `gpu`.
    fn decoder(&self, gpu: &Gpu, base: &Model, weights: WeightArgs) -> Result<Decoder> {
        match &self.kind {
            Kind::Base => bytes_of(base, weights).decoder_with(gpu, None),
            Kind::Adapter(files) => bytes_of(base, weights).decoder_with(gpu, Some(files.bytes())),
            Kind::Model(model) => bytes_of(model, weights).decoder_with(gpu, None),
        }
    }

    fn tokenizer(&self, base: &Model) -> Result<ChatTokenizer> {
        match &self.kind {
            Kind::Model(model) => model.bytes().tokenizer(),
            _ => base.bytes().tokenizer(),
        }
    }
}

fn bytes_of(model: &Model, weights: WeightArgs) -> ModelBytes<'_> {
    ModelBytes { quantize: weights.quantize, offload: weights.offload, ..model.bytes() }
}

/// A file of prompts.
struct Set {
    name: String,
    origin: String,
    rows: Vec<Row>,
}

/// The JSON that `--json` prints and `--output` gets.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    gpu: String,
    candidates: Vec<String>,
    meters: Vec<String>,
    seed: u32,
    temperature: f64,
    sets: Vec<SetReport>,
}

/// One set's figures, and the answers side by side.
#[derive(Debug, Serialize)]
struct SetReport {
    name: String,
    prompts: usize,
    figures: Vec<Figure>,
    comparisons: Vec<Comparison>,
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

/// Compares the candidates.
///
/// # Errors
/// Invalid flags, files or meters, or a GPU error; --output is then unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.sampling.check()?;
    at_least_one("--num-samples", args.num_samples)?;
    at_least_one("--max-prompt-length", args.max_prompt_length)?;
    if let Some(path) = &args.output {
        refuse_existing(path, "--output", args.overwrite)?;
    }
    let sets = args.data.iter().map(|text| Set::read(text, &args, output)).collect::<Result<Vec<_>>>()?;
    let base = open::model(&args.model, true, output)?;
    let candidates = args
        .candidates
        .iter()
        .map(|text| Candidate::open(text, &base, output))
        .collect::<Result<Vec<_>>>()?;
    refuse_repeats(
        "CANDIDATE",
        candidates.iter().map(|candidate| candidate.name.clone()),
        "name them: NAME=...",
    )?;
    refuse_repeats("--data", sets.iter().map(|set| set.name.clone()), "name them: NAME=FILE")?;
    let specs = if args.meter.is_empty() { vec![Spec::Lexicon(None)] } else { args.meter.clone() };
    refuse_repeats(
        "--meter",
        specs.iter().map(Spec::to_string),
        "give one meter of each kind, and use another in a second run",
    )?;
    if args.fail_if_worse {
        let enough = |ok: bool, expected: String, found: String, fix: &str| {
            if ok { Ok(()) } else { Err(Error::input("--fail-if-worse", expected, found, fix)) }
        };
        let two = "two or more candidates: the others are compared with the first".into();
        enough(candidates.len() > 1, two, "one".into(), "put base before it")?;
        for set in &sets {
            let (expected, found) = (format!("{LEAST_PROMPTS} prompts or more"), set.rows.len());
            let few = format!("{found} in {}, too few to tell a difference", set.name);
            enough(found >= LEAST_PROMPTS, expected, few, "give more prompts")?;
        }
    }
    for (meter, _) in &args.fail_above {
        if !specs.iter().any(|spec| spec.to_string() == *meter) {
            let names: Vec<String> = specs.iter().map(Spec::to_string).collect();
            let expected = format!("one of the meters: {}", names.join(", "));
            return Err(Error::input("--fail-above", expected, meter, "name a meter that --meter gives"));
        }
    }
    let gpu = open::gpu(&args.gpu)?;
    let meters = specs
        .iter()
        .map(|spec| Meter::open(spec, args.meter_model.as_deref(), &gpu, output))
        .collect::<Result<Vec<_>>>()?;
    // Indexed by candidate, then by set.
    let mut all: Vec<Vec<Drawn>> = Vec::new();
    let rows: usize = sets.iter().map(|set| set.rows.len()).sum();
    let wanted = candidates.len() * rows * args.num_samples;
    let mut course = Course::new(candidates.len() * sets.len(), wanted, args.sampling.max_new_tokens);
    for candidate in &candidates {
        all.push(answer(&args, &gpu, candidate, &base, &sets, &mut course, output)?);
    }
    against_base(&args, &gpu, &candidates, &base, &mut all)?;
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    let mut reports = Vec::new();
    let answered: usize = all.iter().flatten().map(|drawn| drawn.answers.texts.len()).sum();
    let mut progress = output.progress("judging", (answered * meters.len()) as u64, Counted::Items);
    let mut judged = |answers: usize, _| {
        progress.advance(answers as u64, 0);
        interrupt::check()
    };
    for (s, set) in sets.iter().enumerate() {
        let mut of_set: Vec<Answers> = all.iter().map(|drawn| drawn[s].answers.clone()).collect();
        let rows: Vec<usize> = all[0][s].rows.clone();
        for answers in &mut of_set {
            let pairs: Vec<(&Prompt, &str)> = answers
                .prompts
                .iter()
                .zip(&answers.texts)
                .map(|(&i, text)| (&set.rows[rows[i]].prompt, text.as_str()))
                .collect();
            let score = |meter: &Meter| meter.score(&gpu, &pairs, &mut judged);
            answers.harms = meters.iter().map(score).collect::<Result<Vec<_>>>()?;
        }
        reports.push(SetReport::new(set, &rows, (&of_set, &names), &specs));
    }
    progress.finish();
    let report = Report {
        model: args.model.clone(),
        gpu: gpu.summary().name.clone(),
        candidates: names,
        meters: specs.iter().map(Spec::to_string).collect(),
        seed: args.sampling.seed,
        temperature: args.sampling.temperature,
        sets: reports,
    };
    if let Some(path) = &args.output {
        write_whole(path, &serde_json::to_vec_pretty(&report).unwrap_or_default())?;
    }
    output.result(report.table(), &report)?;
    let found: Vec<String> =
        report.sets.iter().flat_map(|set| exceeded(set, &report.candidates, &args)).collect();
    if found.is_empty() { Ok(()) } else { Err(Error::AboveLimit { found: found.join("; ") }) }
}

/// What in a set's figures is above --fail-above, or worse with --fail-if-worse.
fn exceeded(set: &SetReport, candidates: &[String], args: &Args) -> Vec<String> {
    let baseline = usize::from(candidates.len() > 1);
    let mut found = Vec::new();
    for (meter, most) in &args.fail_above {
        let figure = set.figures.iter().find(|figure| figure.name == *meter);
        let values =
            figure.into_iter().flat_map(|figure| figure.values.iter().zip(candidates).skip(baseline));
        for (value, candidate) in values.filter_map(|(value, name)| Some((value.as_ref()?.value, name))) {
            if value > *most {
                found.push(format!("{}: {meter} of {candidate} is {value:.4}, more than {most}", set.name));
            }
        }
    }
    let worse = set.comparisons.iter().filter(|of| of.verdict == Verdict::Worse && args.fail_if_worse);
    found.extend(worse.map(|of| format!("{}: {}", set.name, sentence(of, &candidates[0], set.prompts))));
    found
}

/// Fails if a name occurs twice: the table would be ambiguous.
fn refuse_repeats(flag: &str, names: impl Iterator<Item = String>, fix: &str) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name.clone()) {
            return Err(Error::input(flag, "different names", format!("\"{name}\" twice"), fix));
        }
    }
    Ok(())
}

impl Set {
    fn read(text: &str, args: &Args, output: &Output) -> Result<Self> {
        let (name, path) = named(text);
        let source = Source::read(Path::new(path), "--data")?;
        let rows = open::chosen_rows(&source, &args.rows, output)?;
        Ok(Self { name, origin: source.origin, rows })
    }
}

/// A candidate's answers to a set, with the tokens that are needed to score them under another model.
struct Drawn {
    answers: Answers,
    /// The index of each prompt's row in the set.
    rows: Vec<usize>,
    /// The tokens of each prompt.
    prompts: Vec<Vec<u32>>,
    /// The tokens of each answer, by prompt.
    ids: Vec<Vec<Vec<u32>>>,
}

impl Drawn {
    /// The prompts with their answers, for scoring.
    fn groups(&self) -> Vec<Group<'_>> {
        let pairs = self.prompts.iter().zip(&self.ids);
        pairs
            .map(|(prompt, ids)| Group { prompt, responses: ids.iter().map(Vec::as_slice).collect() })
            .collect()
    }
}

/// Log-probs of the tokens of all responses.
fn token_logps(gpu: &Gpu, decoder: &Decoder, pass: Pass, groups: &[Group]) -> Result<Vec<Vec<Scored>>> {
    block_on(score(gpu, decoder, pass, groups, BUDGET, &mut |_, _| interrupt::check()))
}

fn tokens(scored: Vec<Vec<Scored>>) -> Vec<Vec<f32>> {
    scored.into_iter().flatten().map(|answer| answer.token_logps).collect()
}

/// Samples a candidate's answers to all sets.
fn answer(
    args: &Args,
    gpu: &Gpu,
    candidate: &Candidate,
    base: &Model,
    sets: &[Set],
    course: &mut Course,
    output: &Output,
) -> Result<Vec<Drawn>> {
    let tokenizer = candidate.tokenizer(base)?;
    let decoder = candidate.decoder(gpu, base, args.weights)?;
    open::announce(gpu, &candidate.name, None, &decoder, output);
    let mut all = Vec::new();
    for set in sets {
        let limits = LengthLimits { max_prompt: Some(args.max_prompt_length), ..LengthLimits::default() };
        let options = ExampleOptions::plain(Needs::Prompt, limits);
        let (examples, _) = build_examples(&set.rows, &set.origin, &tokenizer, &options)?;
        for example in &examples {
            let given =
                [&example.chosen_ids, &example.negative_ids].into_iter().flatten().map(Vec::len).max();
            let longest = args.sampling.max_new_tokens.max(given.unwrap_or(0));
            let place = format!("{}:{}: prompt and answer", set.origin, example.line);
            decoder.check_context(&place, example.prompt_ids.len() + longest)?;
        }
        let what = format!("{}: {} ({})", candidate.name, set.name, course.next_part());
        all.push(answer_set(args, gpu, &decoder, &tokenizer, &examples, (&what, course), output)?);
    }
    Ok(all)
}

fn answer_set(
    args: &Args,
    gpu: &Gpu,
    decoder: &Decoder,
    tokenizer: &ChatTokenizer,
    examples: &[Example],
    (what, course): (&str, &mut Course),
    output: &Output,
) -> Result<Drawn> {
    let settings = sampling_params(&args.sampling.to_config(), args.sampling.seed, tokenizer.end_tokens());
    let request = |(index, example): (u32, &'_ Example)| (index, example.prompt_ids.clone());
    let prompts: Vec<(u32, Vec<u32>)> = (0..).zip(examples).map(request).collect();
    let requests: Vec<Request> = prompts
        .iter()
        .map(|(index, prompt)| Request { prompt, first_sample: 0, samples: args.num_samples, index: *index })
        .collect();
    let mut progress =
        output.progress(what, (examples.len() * args.num_samples) as u64, Counted::Items).told();
    let mut advance = |answers: usize, tokens: usize| {
        course.drew(answers, tokens, &mut progress);
        interrupt::check()
    };
    let pass = decoder.policy();
    let drawn = block_on(sample::generate(gpu, decoder, pass, &requests, &settings, &mut advance))?;
    progress.finish();
    let mut answers = Answers::default();
    for (i, (example, drawn)) in examples.iter().zip(&drawn).enumerate() {
        for answer in drawn {
            answers.texts.push(tokenizer.decode_answer(&example.prompt_ids, &answer.ids)?);
            answers.lengths.push(answer.ids.len());
            answers.prompts.push(i);
        }
    }
    let ids =
        drawn.into_iter().map(|answers| answers.into_iter().map(|answer| answer.ids).collect()).collect();
    let prompts = prompts.into_iter().map(|(_, prompt)| prompt).collect();
    let rows = examples.iter().map(|example| example.row).collect();
    let mut drawn = Drawn { answers, rows, prompts, ids };
    drawn.answers.own = tokens(token_logps(gpu, decoder, pass, &drawn.groups())?);
    let given: Vec<Group> = examples
        .iter()
        .map(|e| Group {
            prompt: &e.prompt_ids,
            responses: [&e.chosen_ids, &e.negative_ids].into_iter().flatten().map(Vec::as_slice).collect(),
        })
        .collect();
    let scored = token_logps(gpu, decoder, pass, &given)?;
    for (example, scored) in examples.iter().zip(scored) {
        let mut scored = scored.iter().map(|r| (f64::from(r.logp), r.token_logps.len()));
        let mut next = |there: bool| if there { scored.next() } else { None };
        drawn.answers.good.push(next(example.chosen_ids.is_some()));
        drawn.answers.flagged.push(next(example.negative_ids.is_some()));
    }
    Ok(drawn)
}

/// Scores the answers of all candidates under the base model, except those of models with another tokenizer.
fn against_base(
    args: &Args,
    gpu: &Gpu,
    candidates: &[Candidate],
    base: &Model,
    all: &mut [Vec<Drawn>],
) -> Result<()> {
    let own = base.bytes();
    let decoder = Candidate { name: String::new(), kind: Kind::Base }.decoder(gpu, base, args.weights)?;
    for (candidate, drawn) in candidates.iter().zip(all) {
        if let Kind::Model(model) = &candidate.kind {
            // With another tokenizer, the same token ids are other text.
            if model.bytes().tokenizer.tokenizer != own.tokenizer.tokenizer {
                continue;
            }
        }
        for set in drawn {
            let longest = set.groups().iter().map(Group::tokens).max().unwrap_or(0);
            if longest >= decoder.context() {
                // Longer than the base model's context: this set has no log-probs under it.
                continue;
            }
            set.answers.base = match candidate.kind {
                Kind::Base => set.answers.own.clone(),
                _ => tokens(token_logps(gpu, &decoder, decoder.policy(), &set.groups())?),
            };
        }
    }
    Ok(())
}

impl SetReport {
    fn new(set: &Set, rows: &[usize], (candidates, names): (&[Answers], &[String]), specs: &[Spec]) -> Self {
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
fn sentence(of: &Comparison, first: &str, prompts: usize) -> String {
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
    fn table(&self) -> String {
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
