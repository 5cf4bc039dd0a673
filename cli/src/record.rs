//! Watches a run for the user: progress on stderr, figures and samples into the run's folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::saver::Saver;
use crate::tensorboard::Events;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Progress, Unit};
use aweigh::data::{ChatTokenizer, Completion, Example};
use aweigh::error::Result;
use aweigh::files::Lines;
use aweigh::sample::Answer;
use aweigh::score::Scored;
use aweigh::train::{Metrics, Observer, Pool, State};

/// The observer of `align` and `demo`.
pub struct Recorder<'a> {
    output: &'a Output,
    tokenizer: &'a ChatTokenizer,
    progress: Option<Progress>,
    metrics: Option<Lines>,
    samples: Option<Lines>,
    completions: Option<Lines>,
    events: Option<Events>,
    /// The run's folder, and whether samples are written.
    folder: Option<(PathBuf, bool)>,
    saver: Option<Saver<'a>>,
    logging_steps: usize,
    steps: usize,
    training: bool,
    /// Whether the last line or event could not be written.
    failing: bool,
}

impl<'a> Recorder<'a> {
    /// A recorder that writes nothing.
    pub fn silent(output: &'a Output, tokenizer: &'a ChatTokenizer) -> Self {
        Self {
            output,
            tokenizer,
            progress: None,
            metrics: None,
            samples: None,
            completions: None,
            events: None,
            folder: None,
            saver: None,
            logging_steps: 1,
            steps: 0,
            training: false,
            failing: false,
        }
    }

    /// A recorder that writes metrics.jsonl, TensorBoard's event file and completions.jsonl and, where
    /// wanted, samples.jsonl into `folder`: anew, or going on after step `from` with what is there.
    ///
    /// # Errors
    /// [`aweigh::Error::Io`] where a file cannot be made.
    pub fn into_folder(
        output: &'a Output,
        tokenizer: &'a ChatTokenizer,
        folder: &Path,
        (logging_steps, samples): (usize, bool),
        from: Option<usize>,
    ) -> Result<Self> {
        let folder = Some((folder.to_path_buf(), samples));
        let mut recorder = Self { folder, logging_steps, ..Self::silent(output, tokenizer) };
        recorder.rewind(from)?;
        Ok(recorder)
    }

    /// Goes on after step `from` with what is in the folder, or begins anew.
    ///
    /// # Errors
    /// As [`Recorder::into_folder`].
    pub fn rewind(&mut self, from: Option<usize>) -> Result<()> {
        (self.progress, self.training, self.steps) = (None, false, from.unwrap_or(0));
        let Some((folder, samples)) = &self.folder else { return Ok(()) };
        let lines = |name: &str, key: &str, stays: &dyn Fn(u64, usize) -> bool| match from {
            None => Lines::create(folder.join(name)),
            Some(from) => {
                let step = |line: &Value| line[key].as_f64().map(|step| step as u64);
                Lines::resume(folder.join(name), |line| step(line).is_some_and(|step| stays(step, from)))
            }
        };
        let done = |step: u64, from: usize| step <= from as u64;
        // Of anchors the step is the one before which they were drawn.
        let drawn = |step: u64, from: usize| step == 0 || step < from as u64;
        self.metrics = Some(lines("metrics.jsonl", "global_step", &done)?);
        self.completions = Some(lines("completions.jsonl", "step", &done)?);
        self.samples = if *samples { Some(lines("samples.jsonl", "step", &drawn)?) } else { None };
        // Closed before its successor opens.
        self.events = None;
        self.events = Some(Events::resume(folder, from)?);
        Ok(())
    }

    /// A warning.
    pub fn warn(&self, text: impl std::fmt::Display) {
        self.output.warn(text);
    }

    /// Has the run's state taken and kept.
    pub fn saving(self, saver: Saver<'a>) -> Self {
        Self { saver: Some(saver), ..self }
    }

    /// The last state that was taken.
    pub fn last_state(&self) -> Option<&State> {
        self.saver.as_ref()?.last()
    }

    /// A file that cannot be written to is no reason to lose the run: what it lacks is written when it can
    /// be.
    fn wrote(&mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    self.output.warn("figures can be written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    self.output.warn(format_args!("{error}; the run goes on, and tries again"));
                }
            }
        }
    }

    /// A line of metrics.jsonl, and the same figures for TensorBoard.
    fn figures(&mut self, prefix: &str, metrics: &Metrics) {
        let lines = self.metrics.as_mut().map(|lines| lines.push(metrics));
        let events = self.events.as_mut().map(|events| events.push(prefix, metrics));
        // What the first lacks the second mostly lacks too: one word for both.
        self.wrote(lines.into_iter().chain(events).collect());
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
        self.training = what == "training";
        let unit = if self.training { Unit::Steps } else { Unit::Items };
        self.progress = Some(self.output.progress(what, total as u64, unit).told());
    }

    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        if let Some(progress) = &mut self.progress {
            progress.advance(items as u64, tokens as u64);
        }
        // A step is finished first, and the state kept.
        let waits = self.training && self.saver.as_ref().is_some_and(Saver::keeps);
        if waits { Ok(()) } else { interrupt::check() }
    }

    fn left(&mut self, seconds: f64) {
        if let Some(progress) = &mut self.progress {
            progress.left(seconds);
        }
    }

    fn end(&mut self) {
        self.training = false;
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }

    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        let Some(samples) = &mut self.samples else { return Ok(()) };
        let mut wrote = Ok(());
        for (i, anchor) in pool.anchors.iter().enumerate() {
            let text = self.tokenizer.decode(&anchor.ids, true)?;
            wrote = samples.push(&json!({
                "prompt": example.prompt,
                "completion": Completion::for_prompt(&example.prompt, text),
                "line": example.line,
                "sample": i,
                "step": pool.step,
                "logp": reference.get(i).map(|r| r.logp),
                "num_tokens": anchor.ids.len(),
                "ended": anchor.ended,
                "ids": anchor.ids,
            }));
        }
        self.wrote(wrote);
        Ok(())
    }

    fn wants_state(&mut self, step: usize) -> bool {
        self.saver.as_ref().is_some_and(|saver| saver.wants(step))
    }

    fn wants_anchors(&mut self) -> bool {
        self.saver.as_ref().is_some_and(Saver::wants_anchors)
    }

    fn saved(&mut self, state: State) -> Result<()> {
        self.saver.as_mut().map_or(Ok(()), |saver| saver.save(state))
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.steps += 1;
        let shown = |name: &str| metrics.get(name).map(|v| format!("{name} {v:.3}"));
        let words = ["loss", "rewards/anchor", "rewards/negative", "rewards/chosen", "rewards/rejected"];
        if let Some(progress) = &mut self.progress {
            progress.words(words.iter().filter_map(|&name| shown(name)).collect::<Vec<_>>().join("  "));
        }
        if self.steps.is_multiple_of(self.logging_steps) {
            self.figures("train/", metrics);
        }
        Ok(())
    }

    fn completions(&mut self, step: usize, answers: &[(&Example, Answer)]) -> Result<()> {
        let Some(lines) = &mut self.completions else { return Ok(()) };
        let mut wrote = Ok(());
        for (example, answer) in answers {
            let text = self.tokenizer.decode_answer(&example.prompt_ids, &answer.ids)?;
            wrote = lines.push(&json!({
                "step": step,
                "line": example.line,
                "prompt": example.prompt,
                "completion": Completion::for_prompt(&example.prompt, text),
            }));
        }
        self.wrote(wrote);
        Ok(())
    }

    fn warned(&mut self, text: &str) {
        match &self.progress {
            Some(progress) if !self.output.quiet() => progress.note(&format!("warning: {text}")),
            _ => self.output.warn(text),
        }
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
        self.figures("eval/", metrics);
        Ok(())
    }
}
