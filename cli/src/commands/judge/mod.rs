//! `aweigh judge`: trains a judge on labelled answers, and scores other answers with it.

mod score;
mod train;

use pollster::block_on;
use serde::Serialize;

use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::Unit;
use crate::terminal::text::table;
use aweigh::error::{Error, Result};
use aweigh::eval::judge::{Case, probabilities};
use aweigh::eval::lexicon::Lexicon;
use aweigh::eval::stats::{Classified, Estimate, auroc_estimate};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;

/// Train a judge of answers, or score answers with one.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The subcommand.
    #[command(subcommand)]
    pub what: What,
}

/// The subcommands.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum What {
    /// Train a judge: a model with a classification head that separates flagged answers from fine ones
    Train(Box<train::TrainArgs>),
    /// Score answers: the probability that each is flagged; for labelled answers also the judge's accuracy
    Score(Box<score::ScoreArgs>),
}

/// Packed tokens per batch when scoring.
const BUDGET: usize = 2048;

/// Trains or scores.
///
/// # Errors
/// Invalid flags or files, or a GPU error.
pub fn run(args: Args, output: &Output) -> Result<()> {
    match args.what {
        What::Train(args) => train::train(&args, output),
        What::Score(args) => score::score(&args, output),
    }
}

/// How well flagged and fine answers are separated.
#[derive(Debug, Serialize)]
struct Measured {
    judge: Classified,
    /// AUROC of the built-in word list on the same answers.
    lexicon_auroc: Estimate,
}

/// Fails unless some answers are flagged and some are not.
fn both_classes(cases: &[Case], origin: &str) -> Result<()> {
    let count = |flagged: bool| cases.iter().filter(|case| case.flagged == Some(flagged)).count();
    if count(true) > 0 && count(false) > 0 {
        return Ok(());
    }
    let found = format!("{} flagged and {} fine", count(true), count(false));
    let fix = "give rows with \"label\": true and false, or pairs";
    Err(Error::input(origin, "flagged answers and fine ones", found, fix))
}

/// The probability that each answer is flagged.
fn judged(gpu: &Gpu, judge: &Decoder, cases: &[Case], output: &Output) -> Result<Vec<f64>> {
    let texts: Vec<&[u32]> = cases.iter().map(|case| case.ids.as_slice()).collect();
    let mut progress = output.progress("judging", texts.len() as u64, Unit::Items);
    let mut advance = |items: usize, tokens: usize| {
        progress.advance(items as u64, tokens as u64);
        interrupt::check()
    };
    let found = block_on(probabilities(gpu, judge, &texts, BUDGET, &mut advance))?;
    progress.finish();
    Ok(found)
}

/// The figures for labelled answers.
fn measured(cases: &[Case], found: &[f64]) -> Measured {
    let flagged: Vec<bool> = cases.iter().map(|case| case.flagged == Some(true)).collect();
    let lexicon = Lexicon::default();
    let words: Vec<f64> = cases.iter().map(|case| lexicon.score(&case.text)).collect();
    Measured { judge: Classified::of(found, &flagged), lexicon_auroc: auroc_estimate(&words, &flagged) }
}

impl Measured {
    fn table(&self) -> String {
        let estimate = |e: &Estimate| format!("{:.3} [{:.3}, {:.3}]", e.value, e.low, e.high);
        let j = &self.judge;
        let rows = [
            ("AUROC (0.5 is chance)", estimate(&j.auroc), estimate(&self.lexicon_auroc)),
            ("accuracy", estimate(&j.accuracy), "-".into()),
            ("Brier score", format!("{:.3}", j.brier), "-".into()),
            ("calibration error", format!("{:.3}", j.calibration_error), "-".into()),
        ];
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, a, b)| vec![name.into(), a, b]).collect();
        let share = 100.0 * j.flagged_share;
        let head = format!("{} held-out answers, {share:.0}% flagged", j.count);
        let bins: Vec<Vec<String>> = j
            .bins
            .iter()
            .map(|bin| {
                let range = format!("{:.1} to {:.1}", bin.from, bin.from + 0.1);
                vec![
                    range,
                    bin.count.to_string(),
                    format!("{:.3}", bin.predicted),
                    format!("{:.3}", bin.flagged),
                ]
            })
            .collect();
        let calibration = table(&["probability", "answers", "mean probability", "share flagged"], &bins);
        format!("{}\n\n{calibration}", table(&[&head, "judge", "word list"], &rows))
    }
}
