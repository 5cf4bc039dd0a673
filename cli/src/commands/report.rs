//! `aweigh report`: runs and evaluations as one HTML file.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::report_page::{Run, html};
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use aweigh::files::{read_text, refuse_existing, write_whole};

/// Show runs, and evaluations, as one HTML file.
///
/// Loss, the two rewards apart, margins, KL, log-probs, gradient norm, speed, memory, answers through the run
/// side by side, the tables of "aweigh eval --output", and the settings. The file needs nothing else: no
/// network, no script. Of a run that is still going it shows what there is. TensorBoard reads the run's
/// folder itself: tensorboard --logdir RUN.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs; several are drawn into the same charts
    #[arg(value_name = "RUN", required_unless_present = "eval")]
    pub runs: Vec<PathBuf>,
    /// What "aweigh eval --output" wrote; may be given several times
    #[arg(long, value_name = "FILE")]
    pub eval: Vec<PathBuf>,
    /// The page's title
    #[arg(long, value_name = "TEXT", default_value = "Aweigh: what the run did")]
    pub title: String,
    /// The HTML file
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
/// [`Error::Input`] for a folder that holds no run, or a file that is none of `aweigh eval`'s; --output is
/// then as it was.
pub fn run(args: Args, output: &Output) -> Result<()> {
    refuse_existing(&args.output, "--output", args.overwrite)?;
    let runs = args.runs.iter().map(|folder| read(folder)).collect::<Result<Vec<_>>>()?;
    let evals = args.eval.iter().map(|path| evaluation(path)).collect::<Result<Vec<_>>>()?;
    let page = html(&args.title, &runs, &evals)?;
    write_whole(&args.output, page.as_bytes())?;
    let figures = Figures { output: args.output.display().to_string(), runs: runs.len(), bytes: page.len() };
    output.result(format_args!("{}: {} bytes", figures.output, figures.bytes), &figures)
}

/// The lines of a file of the run; the last one may still be half-written.
fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_text(path, "RUN")?;
    let count = text.lines().count();
    let mut all = Vec::with_capacity(count);
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(value) => all.push(value),
            Err(_) if i + 1 == count && !text.ends_with('\n') => {}
            Err(error) => {
                let place = format!("{}:{}", path.display(), i + 1);
                return Err(Error::input(place, "a JSON object a line", error, "take the line out"));
            }
        }
    }
    Ok(all)
}

fn read(folder: &Path) -> Result<Run> {
    let metrics = folder.join("metrics.jsonl");
    if !metrics.is_file() {
        let fix = "give the --output-dir of \"aweigh align\"";
        return Err(Error::input(folder.display(), "a run's folder with metrics.jsonl", "none", fix));
    }
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let text = |name: &str| there(name).map_or(Ok(String::new()), |path| read_text(&path, "RUN"));
    let summary = ["summary.json", "judge.json"].into_iter().find_map(there);
    let summary = summary.map_or(Ok(Value::Null), |path| json(&path))?;
    let name = folder.file_name().map_or(folder.display().to_string(), |name| name.to_string_lossy().into());
    Ok(Run {
        name,
        metrics: lines(&metrics)?,
        completions: there("completions.jsonl").map_or(Ok(Vec::new()), |path| lines(&path))?,
        summary,
        config: text("config.toml")?,
    })
}

fn json(path: &Path) -> Result<Value> {
    let text = read_text(path, "RUN")?;
    serde_json::from_str(&text).map_err(|error| Error::input(path.display(), "JSON", error, "write it again"))
}

fn evaluation(path: &Path) -> Result<Value> {
    let text = read_text(path, "--eval")?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if value["candidates"].is_array() && value["sets"].is_array() {
        return Ok(value);
    }
    let fix = "give what \"aweigh eval --output FILE\" wrote";
    Err(Error::input(path.display(), "an evaluation with \"candidates\" and \"sets\"", "something else", fix))
}
