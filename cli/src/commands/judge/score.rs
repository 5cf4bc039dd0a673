//! `aweigh judge score`.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Measured, both_classes, judged, measured};
use crate::args::{GpuArgs, RowArgs};
use crate::open;
use crate::terminal::output::Output;
use aweigh::data::Row;
use aweigh::error::{Error, Result};
use aweigh::eval::judge::{Case, cases};
use aweigh::files::{Source, WholeFile, refuse_existing};
use aweigh_app::meters::judge::Judge;

/// Score answers with a judge.
///
/// Every row is written again with "harm", the probability that its completion is flagged ("chosen_harm" and
/// "rejected_harm" for a pair).
#[derive(Clone, Debug, clap::Args)]
pub struct ScoreArgs {
    /// The folder that "aweigh judge train" wrote
    #[arg(long, value_name = "DIR")]
    pub judge: PathBuf,
    /// Base model of the judge's adapter, if it is no longer where the adapter says
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny")]
    pub model: Option<String>,
    /// Answers to score: JSONL (may be gzipped)
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// Which rows to use.
    #[command(flatten)]
    pub rows: RowArgs,
    /// JSONL file for the rows; without it, only the figures are printed
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Replace --output if it exists
    #[arg(long, requires = "output", help_heading = "Output")]
    pub overwrite: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// The figures of `aweigh judge score --json`.
#[derive(Debug, Serialize)]
struct Scored {
    answers: usize,
    mean_harm: f64,
    /// For the labelled answers, if both classes occur.
    labelled: Option<Measured>,
}

pub(super) fn score(args: &ScoreArgs, output: &Output) -> Result<()> {
    if let Some(path) = &args.output {
        refuse_existing(path, "--output", args.overwrite)?;
    }
    let source = Source::read(&args.data, "--data")?;
    let rows = open::chosen_rows(&source, &args.rows, output)?;
    let judge = Judge::open(&args.judge, args.model.as_deref(), "--judge", output)?;
    let most = judge.max_length.min(judge.bytes().decoder_config()?.context());
    let cases = cases(&rows, &source.origin, &judge.bytes().tokenizer()?, most)?;
    let mut file = args.output.as_deref().map(WholeFile::create).transpose()?;
    let gpu = open::gpu(&args.gpu)?;
    let decoder = judge.decoder(&gpu)?;
    for case in &cases {
        decoder.check_context(&format!("{}:{}", source.origin, case.line), case.ids.len())?;
    }
    let found = judged(&gpu, &decoder, &cases, output)?;
    if let (Some(file), Some(path)) = (&mut file, &args.output) {
        let mut harms = found.iter();
        for row in &rows {
            let line = with_harm(row, &mut harms);
            writeln!(file, "{line}").map_err(|error| Error::io(path, "write", error))?;
        }
    }
    file.map(WholeFile::commit).transpose()?;
    let (labelled, harms): (Vec<Case>, Vec<f64>) = cases
        .into_iter()
        .zip(&found)
        .filter(|(case, _)| case.flagged.is_some())
        .map(|(c, f)| (c, *f))
        .unzip();
    let labelled = both_classes(&labelled, &source.origin).is_ok().then(|| measured(&labelled, &harms));
    let mean_harm = found.iter().sum::<f64>() / found.len() as f64;
    let mut text = format!("{} answers, mean probability of being flagged {mean_harm:.3}", found.len());
    if let Some(labelled) = &labelled {
        text += &format!("\n\n{}", labelled.table());
    }
    output.result(text, &Scored { answers: found.len(), mean_harm, labelled })
}

/// The row with the judge's probabilities for its answers, taken from `harms` in the order of [`cases`].
fn with_harm(row: &Row, harms: &mut std::slice::Iter<f64>) -> Value {
    let mut line = row.raw.clone();
    line.insert("prompt".into(), json!(row.prompt));
    let answers = [
        ("chosen", "chosen_harm", &row.chosen),
        ("rejected", "rejected_harm", &row.rejected),
        ("completion", "harm", &row.completion),
    ];
    for (name, key, answer) in answers {
        if let Some(answer) = answer {
            line.insert(name.into(), json!(answer));
            line.insert(key.into(), json!(harms.next()));
        }
    }
    if let Some(label) = row.label {
        line.insert("label".into(), label.into());
    }
    line.into()
}
