//! `aweigh eval`: compares models and adapters on the same prompts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use pollster::block_on;

use crate::args::{GpuArgs, RowArgs, SamplingArgs, WeightArgs, at_least_one};
use crate::open;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Course, Progress, Unit};
use aweigh::error::{Error, Result};
use aweigh::eval::compare::{LEAST_PROMPTS, Verdict};
use aweigh::files::{Source, refuse_existing, write_whole};
use aweigh_app::comparison::{Candidate, Compared, Part, Set, SetReport, Watch, named, sentence};
use aweigh_app::meters::Spec;

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
    let sets = args.data.iter().map(|text| read(text, &args, output)).collect::<Result<Vec<_>>>()?;
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
    let rows: usize = sets.iter().map(|set| set.rows.len()).sum();
    let wanted = candidates.len() * rows * args.num_samples;
    let course = Course::new(candidates.len() * sets.len(), wanted, args.sampling.max_new_tokens);
    let compared = Compared {
        base: &base,
        model: args.model.clone(),
        weights: args.weights,
        candidates,
        sets,
        meters: specs,
        meter_model: args.meter_model.clone(),
        num_samples: args.num_samples,
        max_prompt_length: args.max_prompt_length,
        sampling: args.sampling.clone(),
    };
    let report = block_on(compared.compare(&gpu, &mut Shown { course, output, progress: None }, output))?;
    if let Some(path) = &args.output {
        write_whole(path, &serde_json::to_vec_pretty(&report).unwrap_or_default())?;
    }
    output.result(report.table(), &report)?;
    let found: Vec<String> =
        report.sets.iter().flat_map(|set| exceeded(set, &report.candidates, &args)).collect();
    if found.is_empty() { Ok(()) } else { Err(Error::AboveLimit { found: found.join("; ") }) }
}

/// The comparison on the terminal.
struct Shown<'a> {
    course: Course,
    output: &'a Output,
    /// The progress of the part, and whether the part samples.
    progress: Option<(Progress, bool)>,
}

impl Watch for Shown<'_> {
    fn begin(&mut self, part: Part, total: usize) {
        let total = total as u64;
        self.progress = Some(match part {
            Part::Sampling { candidate, set } => {
                let what = format!("{candidate}: {set} ({})", self.course.next_part());
                (self.output.progress(&what, total, Unit::Items).told(), true)
            }
            Part::Judging => (self.output.progress("judging", total, Unit::Items), false),
        });
    }

    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        match &mut self.progress {
            Some((progress, true)) => self.course.drew(items, tokens, progress),
            Some((progress, false)) => progress.advance(items as u64, tokens as u64),
            None => {}
        }
        interrupt::check()
    }

    fn end(&mut self) {
        if let Some((progress, _)) = self.progress.take() {
            progress.finish();
        }
    }
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

/// Reads a file of `--data`.
fn read(text: &str, args: &Args, output: &Output) -> Result<Set> {
    let (name, path) = named(text);
    let source = Source::read(Path::new(path), "--data")?;
    let rows = open::chosen_rows(&source, &args.rows, output)?;
    Ok(Set { name, origin: source.origin, rows })
}
