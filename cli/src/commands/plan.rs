//! `aweigh plan`: what a run will hold in memory, without a GPU.

use std::path::{Path, PathBuf};

use pollster::block_on;
use serde::Serialize;

use crate::commands::align::{self, Files};
use crate::engine;
use crate::terminal::output::{Output, bytes, table};
use aweigh::config::{MemorySize, PartialConfig, RunConfig};
use aweigh::error::{Error, Result};
use aweigh::files::Source;
use aweigh::gpu::{DEFAULT_BINDING, Purpose, chosen_adapter};
use aweigh::train::{Change, Job, Plan, fit};

/// Show what a run will hold in memory, and what would make it less. Needs no GPU, and uses none.
///
/// Takes the settings of "aweigh align". Without --train, prompts and answers are assumed to be as long as
/// their limits allow.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, next_help_heading = "Run")]
pub struct Args {
    /// Settings in TOML; flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// All the settings.
    #[command(flatten)]
    pub settings: PartialConfig,
}

const EXAMPLES: &str = "\
Examples:
  aweigh plan --model SmolLM2-135M-Instruct --train flagged.jsonl
  aweigh plan --model Qwen2.5-0.5B-Instruct --num-samples 4 --max-new-tokens 64
  aweigh plan --config run.toml --memory 4GB --fit";

/// What stands for the folder that a plan needs not.
const NONE: &str = "-";

#[derive(Serialize)]
struct Figures {
    plan: Plan,
    peak: u64,
    assumed_lengths: bool,
    /// Flags that `--fit` set.
    fitted: Vec<String>,
    savings: Vec<Saving>,
}

/// What one more setting would bring.
#[derive(Debug, Serialize)]
pub struct Saving {
    flag: String,
    peak: u64,
    exact: bool,
}

/// A plan that is within the budget, where there is one, and the settings that it is of.
pub struct Planned {
    /// The settings, changed where `--fit` had to.
    pub config: RunConfig,
    /// Their plan.
    pub plan: Plan,
    /// What was changed, as flags.
    pub fitted: Vec<String>,
}

/// Prints the plan.
///
/// # Errors
/// [`Error::Input`] for wrong settings or files, and for a plan over `--memory`.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let path = Some(PathBuf::from(NONE));
    let mut below = PartialConfig::default();
    (below.data.train, below.output.output_dir) = (path.clone(), path);
    let config = align::settings(below, args.config.as_deref(), args.settings)?;
    let assumed = config.data.train == Path::new(NONE);
    let train = match assumed {
        true => Source { origin: NONE.into(), bytes: Vec::new() },
        false => Source::read(&config.data.train, "--train")?,
    };
    let files = Files::read(&config, train, &|name| engine::model(name, false, output), output)?;
    let inputs = files.inputs();
    let job = if assumed { inputs.assume(&config)? } else { inputs.read(&config)? };
    let binding = binding(&config)?;
    let Planned { config, plan, fitted } = planned(&job, config, binding)?;
    let savings = savings(&job, &config, &plan, binding)?;
    let mut text = text(&plan, &fitted);
    if assumed {
        let (prompt, answer) = job.longest();
        text += &format!(
            "\nassumed: prompts of {prompt} tokens and answers of {answer}, the longest that are allowed; \
             --train FILE counts them"
        );
    }
    if !savings.is_empty() {
        text += &format!("\n\n{}", savings_text(&savings));
    }
    let figures = Figures { peak: plan.peak().total, plan, assumed_lengths: assumed, fitted, savings };
    output.result(text, &figures)
}

/// The largest binding of the adapter that the run would have, or of any where there is none: how many
/// answers are decoded together, and how large batches are at the most, depends on it.
fn binding(config: &RunConfig) -> Result<u64> {
    let wanted = config.gpu.adapter.as_deref();
    match block_on(chosen_adapter(wanted)) {
        Ok(adapter) => Ok(adapter.max_binding.min(adapter.max_buffer)),
        Err(_) if wanted.is_none() => Ok(DEFAULT_BINDING),
        Err(error) => Err(error),
    }
}

/// The plan of a run, with the settings changed until it fits where `--fit` asks for that.
///
/// # Errors
/// [`Error::Input`] for a plan over `--memory`, with what would help.
pub fn planned(job: &Job, config: RunConfig, max_binding: u64) -> Result<Planned> {
    let plan = job.plan(&config, max_binding)?;
    let Some(memory) = config.gpu.memory.clone().filter(|memory| plan.peak().total > memory.bytes()) else {
        return Ok(Planned { config, plan, fitted: Vec::new() });
    };
    let place = format!("--memory {memory}");
    let over = |plan: &Plan| format!("{} in {}", bytes(plan.peak().total), plan.peak().name);
    if !config.gpu.fit {
        let all = savings(job, &config, &plan, max_binding)?;
        let some: Vec<String> = all.iter().map(|s| format!("{} ({})", s.flag, bytes(s.peak))).collect();
        let fix = format!("take --fit, or one of: {}", some.join(", "));
        let fix = if some.is_empty() { "allow more memory, or take a smaller model".into() } else { fix };
        return Err(Error::input(place, "a run that fits", over(&plan), fix));
    }
    let (found, least) = fit(&config, memory.bytes(), &|config| job.plan(config, max_binding))?;
    let Some(fitted) = found else {
        let fix = "allow more memory, or take a smaller model, shorter answers or fewer samples";
        let found = format!("{}, at the least that was found", over(&least));
        return Err(Error::input(place, "a run that fits", found, fix));
    };
    let flags = changed(&config, &fitted).into_iter().map(Change::flag).collect();
    Ok(Planned { config: fitted, plan: least, fitted: flags })
}

/// Of a run that did not fit, although its plan allowed it, the settings of one that takes less than `full`
/// bytes. `None` without `--fit`: what would help is then told.
///
/// # Errors
/// As [`planned`].
pub fn smaller(
    job: &Job,
    failed: &Planned,
    full: u64,
    max_binding: u64,
    output: &Output,
) -> Result<Option<RunConfig>> {
    if !failed.config.gpu.fit {
        let savings = savings(job, &failed.config, &failed.plan, max_binding)?;
        if !savings.is_empty() {
            output.warn(format_args!(
                "the GPU has less memory than this run takes:\n{}",
                savings_text(&savings)
            ));
        }
        return Ok(None);
    }
    let mut config = failed.config.clone();
    config.gpu.memory = Some(MemorySize::of(full - 1));
    let Planned { config, fitted, .. } = planned(job, config, max_binding)?;
    output.warn(format_args!("{} did not fit: trying again with {}", bytes(full), fitted.join(" ")));
    Ok(Some(config))
}

/// What was changed from one to the other.
fn changed(from: &RunConfig, to: &RunConfig) -> Vec<Change> {
    let (a, t) = (&to.anchors, &to.train);
    let mut all = Vec::new();
    all.extend((a.max_num_seqs != from.anchors.max_num_seqs).then_some(Change::MaxNumSeqs(a.max_num_seqs)));
    let tokens = t.max_tokens_per_batch.filter(|_| t.max_tokens_per_batch != from.train.max_tokens_per_batch);
    all.extend(tokens.map(Change::MaxTokensPerBatch));
    all.extend((t.recompute != from.train.recompute).then_some(Change::Recompute(t.recompute)));
    all.extend((t.optim != from.train.optim).then_some(Change::Optim(t.optim)));
    all.extend((to.model.offload && !from.model.offload).then_some(Change::Offload));
    all.extend(to.model.quantize.filter(|_| to.model.quantize != from.model.quantize).map(Change::Quantize));
    all
}

/// What each single change would bring.
fn savings(job: &Job, config: &RunConfig, plan: &Plan, max_binding: u64) -> Result<Vec<Saving>> {
    let mut all = Vec::new();
    for change in plan.changes(config) {
        let mut with = config.clone();
        change.apply(&mut with);
        let peak = job.plan(&with, max_binding)?.peak().total;
        if peak < plan.peak().total {
            all.push(Saving { flag: change.flag(), peak, exact: change.is_exact(config) });
        }
    }
    Ok(all)
}

/// A plan as a table: purposes down, phases across.
pub fn text(plan: &Plan, fitted: &[String]) -> String {
    let mut purposes: Vec<Purpose> =
        plan.phases.iter().flat_map(|phase| phase.by_purpose.keys().copied()).collect();
    purposes.sort_unstable();
    purposes.dedup();
    let row = |name: String, of: &dyn Fn(&aweigh::train::Phase) -> Option<u64>| {
        let cells = plan.phases.iter().map(|phase| of(phase).map_or("-".into(), bytes));
        std::iter::once(name).chain(cells).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<String>> = purposes
        .into_iter()
        .map(|purpose| row(purpose.to_string(), &|phase| phase.by_purpose.get(&purpose).copied()))
        .collect();
    rows.push(row("all".into(), &|phase| Some(phase.total)));
    let headers: Vec<&str> =
        std::iter::once("memory").chain(plan.phases.iter().map(|phase| phase.name)).collect();
    let peak = plan.peak();
    let fitted =
        if fitted.is_empty() { String::new() } else { format!(", with {} to fit", fitted.join(" ")) };
    format!(
        "{}\n{} of GPU memory at the most, in {}{fitted}",
        table(&headers, &rows),
        bytes(peak.total),
        peak.name
    )
}

fn savings_text(savings: &[Saving]) -> String {
    let row = |saving: &Saving| {
        let result = match saving.exact {
            true if saving.flag == "--offload" => "the same, slowly",
            true => "the same",
            false => "close",
        };
        vec![saving.flag.clone(), bytes(saving.peak), result.into()]
    };
    table(&["with", "at the most", "results"], &savings.iter().map(row).collect::<Vec<_>>())
}
