//! `aweigh report`: runs and evaluations as one HTML file.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use aweigh::files::{read_text, refuse_existing, write_whole};
use aweigh_app::report_page::{Run, html};

/// Write runs and evaluations as one HTML page.
///
/// Shows loss, rewards, margins, KL divergence, log-probs, gradient norm, speed, memory, answers at several
/// steps of the run side by side, the tables of "aweigh eval --output", and the settings. The page is
/// self-contained: no network, no script. A run that has not ended yet can be shown too. TensorBoard reads
/// the run's folder directly: tensorboard --logdir RUN.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs; several runs share the charts
    #[arg(value_name = "RUN", required_unless_present = "eval")]
    pub runs: Vec<PathBuf>,
    /// A file that "aweigh eval --output" wrote; may be given several times
    #[arg(long, value_name = "FILE")]
    pub eval: Vec<PathBuf>,
    /// The page's title
    #[arg(long, value_name = "TEXT", default_value = "Aweigh: what the run did")]
    pub title: String,
    /// The HTML file to write
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Replace --output if it exists
    #[arg(long)]
    pub overwrite: bool,
}

const EXAMPLES: &str = "\
Examples:
  aweigh report run
  aweigh report run run2 --eval eval.json --output compared.html";

/// What `--json` prints.
#[derive(Serialize)]
struct Figures {
    output: String,
    runs: usize,
    bytes: usize,
}

/// Writes the page.
///
/// # Errors
/// [`Error::Input`] for a folder without a run, or a file that `aweigh eval` did not write; --output is then
/// unchanged.
pub fn run(args: Args, output: &Output) -> Result<()> {
    refuse_existing(&args.output, "--output", args.overwrite)?;
    let runs = args.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
    let evals = args.eval.iter().map(|path| evaluation(path)).collect::<Result<Vec<_>>>()?;
    let page = html(&args.title, &runs, &evals)?;
    write_whole(&args.output, page.as_bytes())?;
    let figures = Figures { output: args.output.display().to_string(), runs: runs.len(), bytes: page.len() };
    output.result(format_args!("{}: {} bytes", figures.output, figures.bytes), &figures)
}

fn evaluation(path: &Path) -> Result<Value> {
    let text = read_text(path, "--eval")?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if value["candidates"].is_array() && value["sets"].is_array() {
        return Ok(value);
    }
    let fix = "give a file that \"aweigh eval --output\" wrote";
    Err(Error::input(path.display(), "an evaluation with \"candidates\" and \"sets\"", "other content", fix))
}
