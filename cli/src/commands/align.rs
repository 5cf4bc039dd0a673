//! `aweigh align`: trains a model and writes the run's folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::open;
use crate::terminal::output::Output;
use crate::terminal::progress::seconds;
use crate::terminal::text::{bytes, count, table};
use crate::watch::Watch;
use aweigh::config::{Layer, PartialConfig, Preset, RunConfig};
use aweigh::error::{Error, Result};
use aweigh::files::{self, RunFolder, Source};
use aweigh::run::{self, Place, RunFiles, Summary};
use aweigh::train::Metrics;
use aweigh_app::app::runs;
use aweigh_app::meters::anchors::with_meter;

/// Align a model: sample anchors, train, stop if it gets worse, write an adapter.
///
/// Settings come from --config and from flags; flags override the file. Keys in the file are the flags' names
/// with underscores, in the sections model, data, method, anchors, reference, retain, lora, train, stop,
/// output and gpu. Every run writes its complete settings to config.toml in its folder.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, next_help_heading = "Run")]
pub struct Args {
    /// TOML file with settings; flags override it. Its relative paths start at the current folder
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings for a case: "habit" (the default), "refuse" for harmful requests, "paper" for D²O's paper.
    /// --config and flags override them
    #[arg(long, value_name = "NAME")]
    pub preset: Option<Preset>,
    /// Replace an earlier run in --output-dir. A folder that holds anything else is still refused
    #[arg(long)]
    pub overwrite: bool,
    /// Resume the run in this folder from its last checkpoint, with its original settings. On the same GPU
    /// and driver the result is bit-identical to an uninterrupted run. Only GPU flags can be combined with it
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "preset", "overwrite"])]
    pub resume: Option<PathBuf>,
    /// All the settings.
    #[command(flatten)]
    pub settings: PartialConfig,
}

const EXAMPLES: &str = "\
Examples:
  aweigh align --model SmolLM2-135M-Instruct --train flagged.jsonl --output-dir run
  aweigh align --preset refuse --model SmolLM2-135M-Instruct --train harmful.jsonl --output-dir run
  aweigh align --config run.toml --learning-rate 5e-5 --output-dir run2
  aweigh align --config run.toml --samples-file run/samples.jsonl --output-dir run3   # the same anchors again
  aweigh align --resume run                                     # after Ctrl-C, a crash, a power cut

A file for --config:
  [model]
  model = \"SmolLM2-135M-Instruct\"
  [data]
  train = \"flagged.jsonl\"
  [train]
  learning_rate = 1e-4
  [output]
  output_dir = \"run\"

What to watch: rewards/anchor and rewards/negative in metrics.jsonl. rewards/negative should fall. If
rewards/anchor falls with it, the run is breaking the model, and the stop rule ends it.";

/// A run's settings: the flags override the file, the file overrides the preset, and the preset `below`.
///
/// # Errors
/// [`aweigh::Error::Input`] for the first invalid setting, with its place.
pub fn settings(
    below: PartialConfig,
    preset: Option<Preset>,
    file: Option<&Path>,
    flags: PartialConfig,
) -> Result<RunConfig> {
    let mut layers = vec![Layer::from_flags(below)];
    layers.extend(preset.map(Preset::layer));
    if let Some(path) = file {
        layers.push(Layer::from_toml(&files::read_text(path, "--config")?, &path.display().to_string())?);
    }
    layers.push(Layer::from_flags(flags));
    RunConfig::resolve(layers)
}

/// The settings of the run in `folder`, to resume it.
///
/// # Errors
/// [`Error::Input`] for flags other than those of the GPU.
pub fn settings_of(folder: &Path, flags: PartialConfig) -> Result<RunConfig> {
    let other: Vec<String> = flags.given().into_iter().filter(|key| !key.starts_with("gpu.")).collect();
    if !other.is_empty() {
        let flags: Vec<String> = other.iter().map(|key| PartialConfig::flag(key)).collect();
        let fix = "leave them out, or start a new run with --config";
        let expected = "no other settings: a run is resumed with its original ones";
        return Err(Error::input("--resume", expected, flags.join(", "), fix));
    }
    runs::settings_of(folder, flags)
}

/// Aligns a model.
///
/// # Errors
/// Invalid settings or files, or a GPU error; the run's folder is then unchanged, or holds the last
/// checkpoint.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let place = match &args.resume {
        Some(path) => Place::Resume(RunFolder::resume(path, "--resume")?),
        None => Place::New { overwrite: args.overwrite },
    };
    let config = match &args.resume {
        Some(folder) => settings_of(folder, args.settings)?,
        None => settings(PartialConfig::default(), args.preset, args.config.as_deref(), args.settings)?,
    };
    if args.resume.is_none() {
        RunFolder::check(&config.output.output_dir, "--output-dir", args.overwrite)?;
    }
    let train = Source::read(&config.data.train, "--train")?;
    let origin = train.origin.clone();
    let model = open::model(&config.model.model, true, output)?;
    let files = with_meter(RunFiles::with(&config, train, model)?, &config)?;
    let watch = Watch::new(output, "aweigh align --resume").on_loaded(|loaded| {
        output.note(format_args!("{origin}: {}", loaded.lengths));
        let drawn = loaded.config.method.method.is_of_negatives();
        if drawn && loaded.setup.train[0].prompt.is_conversational() {
            open::note_of_system(loaded.tokenizer, &loaded.config.anchors.safety_instruction, output);
        }
        Ok(())
    });
    let finished = watch.over(|watch| run::run(&files, config, place, watch))?;
    let folder = &finished.config.output.output_dir;
    output.result(text(&finished.summary, folder), &finished.summary)?;
    output.note(next_steps(&finished.config));
    Ok(())
}

/// A run's summary for the terminal.
fn text(summary: &Summary, folder: &Path) -> String {
    let figures = |m: &Option<Metrics>| m.as_ref().map(|m| m.0.clone()).unwrap_or_default();
    let rows: Vec<Vec<String>> = figures(&summary.before)
        .into_iter()
        .zip(figures(&summary.after))
        .filter(|((name, _), _)| name != "global_step")
        .map(|((name, before), (_, after))| {
            vec![name.trim_start_matches("eval_").to_string(), format!("{before:.4}"), format!("{after:.4}")]
        })
        .collect();
    let held_out =
        if rows.is_empty() { String::new() } else { table(&["held-out", "before", "after"], &rows) + "\n" };
    let a = &summary.anchors;
    let anchors = match a.drawn {
        0 => String::new(),
        drawn => format!(
            "anchors: {drawn} sampled, {} duplicates, {} empty, {} refused by the filter, {} cut at the \
             length limit\n",
            a.duplicates, a.empty, a.filtered, a.cut
        ),
    };
    let checks = summary.checks.as_ref().map(|checks| format!("{checks}\n")).unwrap_or_default();
    format!(
        "{held_out}ended after step {}: {}; kept the state of step {}\n\
         {anchors}{} tokens trained on, {:.0} tokens/s; {} in total, peak GPU memory {}\n\
         {checks}the result is in {}",
        summary.steps,
        summary.reason_text,
        summary.kept_step,
        count(summary.num_tokens),
        summary.tokens_per_second,
        seconds(Duration::from_secs_f64(summary.seconds)),
        bytes(summary.memory_peak),
        folder.display(),
    )
}

/// Commands for the next steps, ready to paste.
fn next_steps(config: &RunConfig) -> String {
    let run = &config.output.output_dir;
    let base = quoted(&config.model.model);
    let template = config.model.chat_template.as_ref();
    let template =
        template.map(|path| format!(" --chat-template {}", quoted(path.display()))).unwrap_or_default();
    let model = match config.lora.enabled {
        true => format!("--model {base}{template} --adapter {}", quoted(run.join("adapter").display())),
        false => format!("--model {}", quoted(run.join("model").display())),
    };
    let held_out = config.data.eval.as_ref().map_or("HELD-OUT.jsonl".into(), |path| quoted(path.display()));
    let run = quoted(run.display());
    let meter = config.unwanted_rule().map(|rule| format!(" --meter {}", quoted(rule))).unwrap_or_default();
    let rows = [
        (format!("aweigh generate {model}"), "chat with it"),
        (
            format!("aweigh eval base {run} --model {base} --data {held_out}{meter}"),
            "compare it with the original model",
        ),
        (format!("aweigh report {run}"), "write a report of the run as an HTML page"),
        (
            format!("aweigh export {model} --output MODEL"),
            "write a plain model directory, or a file if MODEL ends in .gguf",
        ),
    ];
    let wide = rows.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let rows = rows.iter().map(|(command, what)| format!("\n  {command:<wide$}  # {what}"));
    format!("next:{}", rows.collect::<String>())
}

/// `word`, quoted for a shell if necessary.
fn quoted(word: impl std::fmt::Display) -> String {
    let word = word.to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c) || (cfg!(windows) && c == '\\');
    match word.chars().all(plain) && !word.is_empty() {
        true => word,
        false if cfg!(windows) => format!("\"{word}\""),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next_can_be_pasted() {
        let mut config = RunConfig::default();
        (config.model.model, config.output.output_dir) = ("owner/name".into(), "my run".into());
        let text = next_steps(&config);
        assert!(text.contains("aweigh generate --model owner/name --adapter 'my run/adapter'"), "{text}");
        assert!(
            text.contains("aweigh eval base 'my run' --model owner/name --data HELD-OUT.jsonl"),
            "{text}"
        );
        config.stop.unwanted = Some("match:as an ai".parse().unwrap());
        assert!(next_steps(&config).contains("--data HELD-OUT.jsonl --meter 'match:as an ai'"));
        config.lora.enabled = false;
        assert!(next_steps(&config).contains("aweigh export --model 'my run/model' --output MODEL"));
    }
}
