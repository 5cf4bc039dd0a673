//! `aweigh plan`: the memory that a run will need, without a GPU.

use std::path::{Path, PathBuf};

use pollster::block_on;
use serde::Serialize;

use crate::commands::align;
use crate::open;
use crate::terminal::memory;
use crate::terminal::output::Output;
use aweigh::config::{PartialConfig, Preset};
use aweigh::error::Result;
use aweigh::files::Source;
use aweigh::run::{Material, Planned, RunFiles, Saving, savings};
use aweigh::train::Plan;
use aweigh_app::meters::anchors::with_meter;
use aweigh_app::open::binding;

/// Show how much GPU memory a run will need, and which settings would lower it. Needs no GPU.
///
/// Takes the settings of "aweigh align". Without --train, prompts and answers are assumed to be as long as
/// their limits allow.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, next_help_heading = "Run")]
pub struct Args {
    /// Settings for a case, as for "aweigh align": "habit", "refuse" or "paper"
    #[arg(long, value_name = "NAME")]
    pub preset: Option<Preset>,
    /// TOML file with settings; flags override it
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

/// Placeholder for --train and --output-dir, which a plan does not need.
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

/// Prints the plan.
///
/// # Errors
/// [`aweigh::Error::Input`] for wrong settings or files, and for a plan over `--memory`.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let path = Some(PathBuf::from(NONE));
    let mut below = PartialConfig::default();
    (below.data.train, below.output.output_dir) = (path.clone(), path);
    let config = align::settings(below, args.preset, args.config.as_deref(), args.settings)?;
    let assumed = config.data.train == Path::new(NONE);
    let train = match assumed {
        true => Source { origin: NONE.into(), bytes: Vec::new() },
        false => Source::read(&config.data.train, "--train")?,
    };
    let model = open::model(&config.model.model, false, output)?;
    let files = with_meter(RunFiles::with(&config, train, model)?, &config)?;
    files.remarks().iter().for_each(|remark| output.warn(remark));
    let inputs = files.inputs();
    let job = if assumed { inputs.assume(&config)? } else { inputs.read(&config)? };
    job.remarks().iter().for_each(|remark| output.warn(remark));
    let binding = block_on(binding(config.gpu.adapter.as_deref(), config.gpu.backend))?;
    let Planned { config, plan, fitted } = Planned::of(&job, config, binding)?;
    let savings = savings(&job, &config, &plan, binding)?;
    let mut text = memory::plan(&plan, &fitted);
    if assumed {
        let (prompt, answer) = job.longest();
        text += &format!(
            "\nassumed: prompts of {prompt} tokens and answers of {answer} tokens, the longest allowed; with \
             --train FILE the real lengths are used"
        );
    }
    if !savings.is_empty() {
        text += &format!("\n\n{}", memory::savings(&savings));
    }
    let figures = Figures { peak: plan.peak().total, plan, assumed_lengths: assumed, fitted, savings };
    output.result(text, &figures)
}
