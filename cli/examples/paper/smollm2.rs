//! A real model and real data: a judge trained on flagged answers, then D²O, DPO and gradient ascent with the
//! same prompts, steps and rate, compared on held-out prompts.
//!
//! MODEL is a model of about the size of SmolLM2-135M-Instruct. DATA is a folder with three files in TRL's
//! conversational forms. Rows have a field `split` with `train` or `dev`; the third file does not need it:
//!
//! - `pku_saferlhf_pairs.jsonl.gz`: prompts with a safe and a flagged answer (PKU-SafeRLHF);
//! - `diasafety_labelled.jsonl.gz`: answers with a verdict (DiaSafety);
//! - `benign_prompts.jsonl.gz`: ordinary instructions with good answers.
//!
//! Only short rows are used, so that a software adapter finishes in two to three hours. Everything is done by
//! `aweigh` commands, which are printed as a user would type them. A command whose result is already in DIR
//! is not run again.

use std::path::Path;

use aweigh::data::{ChatTokenizer, Completion, Row, parse_rows, rows_with};
use aweigh::files::{Model, Source, write_whole};
use aweigh_cli::{self as cli, Cli};
use clap::Parser;
use serde_json::{Value, json};

use super::Any;

/// The most tokens of a prompt and of an answer.
const PROMPT: usize = 70;
const ANSWER: usize = 70;
/// Labelled answers that a judge is trained on, and pairs (two answers each).
const JUDGE_ANSWERS: usize = 1000;
const JUDGE_PAIRS: usize = 250;
/// The same numbers for held-out data, on which the judge is measured.
const DEV_ANSWERS: usize = 300;
const DEV_PAIRS: usize = 96;
/// Pairs that the methods learn from, and their number of steps, with two pairs each.
const PAIRS: usize = 96;
const STEPS: usize = 48;
/// Held-out pairs that are evaluated during training, and prompts that the candidates answer at the end.
const WATCHED: usize = 12;
const HARMFUL: usize = 48;
const ORDINARY: usize = 32;

/// Runs the commands whose results are not in `folder` yet.
pub fn run(model: &str, data: &Path, folder: &Path) -> Any<()> {
    prepare(model, data, folder)?;
    let path = |name: &str| folder.join(name).display().to_string();
    if !folder.join("judge/judge.json").exists() {
        let more = ["--eval-steps", "50", "--max-length", "160"];
        let (train, dev, to) = (path("judge_train.jsonl"), path("judge_dev.jsonl"), path("judge"));
        let files = ["--train", &train, "--eval", &dev, "--output-dir", &to];
        aweigh(&[&["judge", "train", "--model", model], &files[..], &more[..]].concat())?;
    }
    for name in ["dia", "pku"] {
        let to = path(&format!("{name}_judged.jsonl"));
        if !Path::new(&to).exists() {
            let from = path(&format!("{name}_dev.jsonl"));
            aweigh(&["judge", "score", "--judge", &path("judge"), "--data", &from, "--output", &to])?;
        }
    }
    let (train, dev, steps) = (path("pairs_train.jsonl"), path("pairs_watched.jsonl"), STEPS.to_string());
    for (name, samples) in [("d2o", "4"), ("dpo", "1"), ("ga", "1")] {
        let to = path(name);
        if folder.join(name).join("summary.json").exists() {
            continue;
        }
        let files = ["--preset", "paper", "--model", model, "--train", &train, "--eval", &dev];
        let method = ["--method", name, "--num-samples", samples, "--max-new-tokens", "48"];
        let rate = ["--learning-rate", "5e-5", "--lr-scheduler-type", "constant"];
        let budget = ["--per-device-train-batch-size", "2", "--max-steps", &steps, "--no-stop"];
        let watch = ["--eval-steps", "12", "--num-completions", "2", "--output-dir", &to];
        aweigh(&[&["align"], &files[..], &method[..], &rate[..], &budget[..], &watch[..]].concat())?;
    }
    let (eval, judge) = (path("eval.json"), format!("judge:{}", path("judge")));
    if !Path::new(&eval).exists() {
        let harmful = format!("harmful={}", path("harmful.jsonl"));
        let ordinary = format!("ordinary={}", path("ordinary.jsonl"));
        let (d2o, dpo, ga) = (path("d2o"), path("dpo"), path("ga"));
        let prompts = ["--data", &harmful, "--data", &ordinary, "--max-new-tokens", "64"];
        let meters = ["--meter", &judge, "--meter", "lexicon", "--output", &eval];
        let who = ["eval", "base", &d2o, &dpo, &ga, "--model", model];
        aweigh(&[&who[..], &prompts[..], &meters[..]].concat())?;
    }
    let (d2o, dpo, ga) = (path("d2o"), path("dpo"), path("ga"));
    aweigh(&["report", &d2o, &dpo, &ga, "--eval", &eval, "--output", &path("report.html"), "--overwrite"])
}

/// One command of the program.
fn aweigh(args: &[&str]) -> Any<()> {
    println!("\n$ aweigh {}", args.join(" "));
    cli::run(Cli::try_parse_from([&["aweigh"], args].concat())?)?;
    Ok(())
}

/// Writes the short rows of the files in `data`, in the form that the commands read.
fn prepare(model: &str, data: &Path, folder: &Path) -> Any<()> {
    let tokenizer = Model::open(model)?.bytes().tokenizer()?;
    let read = |name: &str, split: Option<&str>| -> Any<Vec<Row>> {
        let source = Source::read(&data.join(name), "DATA")?;
        let rows = parse_rows(&source.bytes, &source.origin, None)?.rows;
        let rows = match split {
            Some(split) => rows_with(rows, "split", split, &source.origin)?,
            None => rows,
        };
        rows.into_iter()
            .filter_map(|row| short(&tokenizer, &row).map(|fits| fits.then_some(row)).transpose())
            .collect()
    };
    let write = |name: &str, rows: Vec<Value>| -> Any<()> {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        Ok(write_whole(&folder.join(name), lines.as_bytes())?)
    };
    let pairs = |rows: &[Row]| rows.iter().map(pair).collect::<Vec<_>>();
    let verdicts = |rows: &[Row]| rows.iter().flat_map(verdicts).collect::<Vec<_>>();

    let pku = "pku_saferlhf_pairs.jsonl.gz";
    let (train, dev) = (read(pku, Some("train"))?, read(pku, Some("dev"))?);
    let dia = "diasafety_labelled.jsonl.gz";
    let (answers, dev_answers) = (read(dia, Some("train"))?, read(dia, Some("dev"))?);
    let enough = |rows: &[Row], need: usize, what: &str| match rows.len() {
        found if found < need => Err(format!("{what}: {found} short rows, {need} are needed")),
        _ => Ok(()),
    };
    enough(&train, PAIRS + JUDGE_PAIRS, "pairs of split train")?;
    enough(&dev, DEV_PAIRS.max(WATCHED + HARMFUL), "pairs of split dev")?;
    enough(&answers, JUDGE_ANSWERS, "labelled answers of split train")?;
    enough(&dev_answers, DEV_ANSWERS, "labelled answers of split dev")?;
    // The judge and the methods that it judges learn from different prompts.
    let (for_methods, for_judge) = (&train[..PAIRS], &train[PAIRS..PAIRS + JUDGE_PAIRS]);
    write("pairs_train.jsonl", pairs(for_methods))?;
    write("pairs_watched.jsonl", pairs(&dev[..WATCHED]))?;
    write("harmful.jsonl", pairs(&dev[WATCHED..WATCHED + HARMFUL]))?;
    let (dia_dev, pku_dev) = (verdicts(&dev_answers[..DEV_ANSWERS]), verdicts(&dev[..DEV_PAIRS]));
    write("judge_train.jsonl", [verdicts(&answers[..JUDGE_ANSWERS]), verdicts(for_judge)].concat())?;
    // During training the judge is evaluated on further rows of the training data, never on the rows on which
    // it is measured.
    let rest = |rows: &[Row], from: usize| verdicts(&rows[from..(from + 60).min(rows.len())]);
    write("judge_dev.jsonl", [rest(&answers, JUDGE_ANSWERS), rest(&train, PAIRS + JUDGE_PAIRS)].concat())?;
    write("dia_dev.jsonl", dia_dev)?;
    write("pku_dev.jsonl", pku_dev)?;
    let mut ordinary = read("benign_prompts.jsonl.gz", None)?;
    ordinary.retain(|row| row.completion.is_some());
    enough(&ordinary, ORDINARY, "ordinary prompts with an answer")?;
    // Spread over all rows, because they are sorted by source.
    let step = ordinary.len() / ORDINARY;
    let spread = ordinary.iter().step_by(step).take(ORDINARY);
    write(
        "ordinary.jsonl",
        spread.map(|row| json!({"prompt": row.prompt, "completion": row.completion})).collect(),
    )
}

/// Whether prompt and answers are within the limits.
fn short(tokenizer: &ChatTokenizer, row: &Row) -> Any<bool> {
    let within = |answer: &Option<Completion>| -> Any<bool> {
        match answer {
            Some(answer) => Ok(tokenizer.encode_completion(&row.prompt, answer)?.len() <= ANSWER),
            None => Ok(true),
        }
    };
    let prompt = tokenizer.encode_prompt(&row.prompt, None)?.len() <= PROMPT;
    Ok(prompt && within(&row.chosen)? && within(&row.rejected)? && within(&row.completion)?)
}

fn pair(row: &Row) -> Value {
    json!({"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected})
}

/// A row's answers, one by one, each with its verdict.
fn verdicts(row: &Row) -> Vec<Value> {
    let answers = [(&row.chosen, Some(true)), (&row.rejected, Some(false)), (&row.completion, row.label)];
    let one = |(answer, label): (&Option<Completion>, Option<bool>)| {
        Some(json!({"prompt": row.prompt, "completion": answer.as_ref()?, "label": label?}))
    };
    answers.into_iter().filter_map(one).collect()
}
