//! Watches a run for the user: progress on stderr, figures and samples into the run's folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::interrupt;
use super::output::Output;
use super::progress::{Progress, Unit};
use crate::data::{ChatTokenizer, Completion, Example};
use crate::error::{Error, Result};
use crate::files::Events;
use crate::sample::Answer;
use crate::train::{Metrics, Observer, Pool, Scored};

/// A file that grows line by line.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn push(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let failed = |path: &Path, e: std::io::Error| Error::io(path, "write", e);
        serde_json::to_writer(&mut self.file, line).map_err(|e| failed(&self.path, e.into()))?;
        self.file.write_all(b"\n").and_then(|()| self.file.flush()).map_err(|e| failed(&self.path, e))
    }
}

/// The observer of `align` and `demo`.
pub struct Recorder<'a> {
    output: &'a Output,
    tokenizer: &'a ChatTokenizer,
    progress: Option<Progress>,
    metrics: Option<Lines>,
    samples: Option<Lines>,
    completions: Option<Lines>,
    events: Option<Events>,
    logging_steps: usize,
    steps: usize,
}

impl<'a> Recorder<'a> {
    /// A recorder that writes nothing.
    pub fn silent(output: &'a Output, tokenizer: &'a ChatTokenizer) -> Self {
        let (metrics, samples, progress) = (None, None, None);
        let (completions, events) = (None, None);
        Self {
            output,
            tokenizer,
            progress,
            metrics,
            samples,
            completions,
            events,
            logging_steps: 1,
            steps: 0,
        }
    }

    /// A recorder that writes metrics.jsonl, TensorBoard's event file and completions.jsonl and, where wanted, samples.jsonl into `folder`.
    pub fn into_folder(
        output: &'a Output,
        tokenizer: &'a ChatTokenizer,
        folder: &Path,
        (logging_steps, samples): (usize, bool),
    ) -> Result<Self> {
        let metrics = Some(Lines::create(folder.join("metrics.jsonl"))?);
        let samples = if samples { Some(Lines::create(folder.join("samples.jsonl"))?) } else { None };
        let completions = Some(Lines::create(folder.join("completions.jsonl"))?);
        let events = Some(Events::create(folder)?);
        Ok(Self { metrics, samples, completions, events, logging_steps, ..Self::silent(output, tokenizer) })
    }

    fn say(&self, text: String) {
        match &self.progress {
            Some(progress) => progress.note(&text),
            None => self.output.note(text),
        }
    }
}

impl Observer for Recorder<'_> {
    fn begin(&mut self, what: &str, total: usize) {
        let unit = if what == "training" { Unit::Steps } else { Unit::Items };
        self.progress = Some(self.output.progress(what, total as u64, unit));
    }

    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        if let Some(progress) = &mut self.progress {
            progress.advance(items as u64, tokens as u64);
        }
        interrupt::check()
    }

    fn end(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }

    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        let Some(samples) = &mut self.samples else { return Ok(()) };
        for (i, anchor) in pool.anchors.iter().enumerate() {
            let text = self.tokenizer.decode(&anchor.ids, true)?;
            samples.push(&json!({
                "prompt": example.prompt,
                "completion": Completion::for_prompt(&example.prompt, text),
                "line": example.line,
                "sample": i,
                "step": pool.step,
                "logp": reference.get(i).map(|r| r.logp),
                "num_tokens": anchor.ids.len(),
                "ended": anchor.ended,
                "ids": anchor.ids,
            }))?;
        }
        Ok(())
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.steps += 1;
        let shown = |name: &str| metrics.get(name).map(|v| format!("{name} {v:.3}"));
        let words = ["loss", "rewards/anchor", "rewards/negative", "rewards/chosen", "rewards/rejected"];
        if let Some(progress) = &mut self.progress {
            progress.words(words.iter().filter_map(|&name| shown(name)).collect::<Vec<_>>().join("  "));
        }
        match &mut self.metrics {
            Some(lines) if self.steps.is_multiple_of(self.logging_steps) => lines.push(metrics)?,
            _ => return Ok(()),
        }
        self.events.as_mut().map_or(Ok(()), |events| events.push("train/", metrics))
    }

    fn completions(&mut self, step: usize, answers: &[(&Example, Answer)]) -> Result<()> {
        let Some(lines) = &mut self.completions else { return Ok(()) };
        for (example, answer) in answers {
            let text = self.tokenizer.decode_answer(&example.prompt_ids, &answer.ids)?;
            lines.push(&json!({
                "step": step,
                "line": example.line,
                "prompt": example.prompt,
                "completion": Completion::for_prompt(&example.prompt, text),
            }))?;
        }
        Ok(())
    }

    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        let short = |(name, value): &(String, f64)| {
            let name = name.strip_prefix("eval_").unwrap_or(name);
            if name == "global_step" {
                format!("held-out at step {value}:")
            } else {
                format!("{name} {value:.3}")
            }
        };
        const SHOWN: [&str; 5] = [
            "global_step",
            "eval_rewards/margins",
            "eval_logps_per_token/anchor",
            "eval_kl/anchor",
            "eval_perplexity",
        ];
        let line: Vec<String> =
            metrics.0.iter().filter(|(name, _)| SHOWN.contains(&name.as_str())).map(short).collect();
        self.say(line.join("  "));
        if let Some(lines) = &mut self.metrics {
            lines.push(metrics)?;
        }
        self.events.as_mut().map_or(Ok(()), |events| events.push("eval/", metrics))
    }
}
