//! Saves a run's data while it runs: states in memory and on disk; metrics, anchors and answers in files.

use std::time::Duration;

use serde_json::{Value, json};
use web_time::Instant;

use super::Watcher;
use crate::config::RunConfig;
use crate::data::{ChatTokenizer, Completion, Example};
use crate::error::Result;
use crate::files::checkpoint::{self, Origin};
use crate::files::{Lines, RunFolder, write_whole};
use crate::model::Decoder;
use crate::sample::Answer;
use crate::score::Scored;
use crate::train::{Asked, Cleaned, Judged, Metrics, Observer, Phase, Pool, State, Wish};

/// The longest time between two checkpoints while anchors are sampled.
const ANCHORS_EVERY: Duration = Duration::from_secs(60);

/// Observes a run, saves its data, and passes every call on to the watcher.
pub(super) struct Keeper<'a> {
    watcher: &'a mut dyn Watcher,
    tokenizer: &'a ChatTokenizer,
    config: &'a RunConfig,
    disk: Option<Disk<'a>>,
    /// The last state of the run.
    last: Option<State>,
    stopping: bool,
    /// Optimizer steps done.
    steps: usize,
    /// Whether the last line of output could not be written.
    failing: bool,
}

/// A run's folder, and what its checkpoints contain besides the state.
pub(super) struct Disk<'a> {
    pub folder: &'a RunFolder,
    /// The text of `adapter_config.json`; `None` for full training.
    pub adapter_config: Option<String>,
    pub origin: Origin,
    written: Instant,
    failing: bool,
    metrics: Option<Lines>,
    samples: Option<Lines>,
    completions: Option<Lines>,
}

impl<'a> Disk<'a> {
    pub fn new(folder: &'a RunFolder, adapter_config: Option<String>, origin: Origin) -> Self {
        let (written, failing) = (Instant::now(), false);
        Self {
            folder,
            adapter_config,
            origin,
            written,
            failing,
            metrics: None,
            samples: None,
            completions: None,
        }
    }

    /// Opens the output files. Only lines of the first `from` steps are kept; with `None`, the files start
    /// empty.
    fn rewind(&mut self, from: Option<usize>, samples: bool) -> Result<()> {
        let folder = self.folder.path();
        let lines = |name: &str, key: &str, stays: &dyn Fn(u64, usize) -> bool| match from {
            None => Lines::create(folder.join(name)),
            Some(from) => {
                let step = |line: &Value| line[key].as_f64().map(|step| step as u64);
                Lines::resume(folder.join(name), |line| step(line).is_some_and(|step| stays(step, from)))
            }
        };
        let done = |step: u64, from: usize| step <= from as u64;
        // The step of an anchor is the number of steps done when it was sampled.
        let drawn = |step: u64, from: usize| step == 0 || step < from as u64;
        // Windows cannot replace a file that is open.
        (self.metrics, self.completions, self.samples) = (None, None, None);
        self.metrics = Some(lines("metrics.jsonl", "global_step", &done)?);
        self.completions = Some(lines("completions.jsonl", "step", &done)?);
        self.samples = if samples { Some(lines("samples.jsonl", "step", &drawn)?) } else { None };
        Ok(())
    }
}

impl<'a> Keeper<'a> {
    /// A keeper of a run that resumes after `from` steps, or that starts from the beginning.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if a file cannot be created.
    pub fn new(
        watcher: &'a mut dyn Watcher,
        (tokenizer, config): (&'a ChatTokenizer, &'a RunConfig),
        disk: Option<Disk<'a>>,
        from: Option<usize>,
    ) -> Result<Self> {
        let mut keeper =
            Self { watcher, tokenizer, config, disk, last: None, stopping: false, steps: 0, failing: false };
        keeper.rewind(from)?;
        Ok(keeper)
    }

    /// Resumes after step `from` with the files in the folder, or starts from the beginning.
    ///
    /// # Errors
    /// As [`Keeper::new`].
    pub fn rewind(&mut self, from: Option<usize>) -> Result<()> {
        self.steps = from.unwrap_or(0);
        if let Some(disk) = &mut self.disk {
            disk.rewind(from, self.config.output.save_samples)?;
        }
        self.watcher.rewound(self.disk.as_ref().map(|disk| disk.folder.path()), from)
    }

    pub fn last_state(&self) -> Option<&State> {
        self.last.as_ref()
    }

    pub fn warn(&mut self, text: &str) {
        self.watcher.warned(text);
    }

    /// Whether a checkpoint is due after `step` steps.
    fn is_due(&self, step: usize) -> bool {
        let o = &self.config.output;
        self.disk.as_ref().is_some_and(|disk| {
            step == 0
                || self.stopping
                || o.save_steps.is_some_and(|steps| step.is_multiple_of(steps))
                || disk.written.elapsed() >= every(self.config)
        })
    }

    /// Writes a checkpoint. If that fails, the run continues.
    fn write(&mut self, state: &State) {
        let Some(disk) = &mut self.disk else { return };
        disk.written = Instant::now();
        let (config, keep) = (disk.adapter_config.as_deref(), self.config.output.save_total_limit);
        match checkpoint::write(disk.folder.path(), state, config, &disk.origin, keep) {
            Ok(()) => {
                disk.folder.keep();
                if std::mem::take(&mut disk.failing) {
                    self.watcher.warned(&format!("checkpoints can be written again: step {}", state.step));
                }
                self.watcher.kept(state);
            }
            Err(error) => {
                if !std::mem::replace(&mut disk.failing, true) {
                    self.watcher.warned(&format!("{error}; the run continues without this checkpoint"));
                }
            }
        }
    }

    /// Warns once if output cannot be written. The run continues; the missing lines are written later.
    fn wrote(&mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    self.watcher.warned("output can be written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    self.watcher.warned(&format!("{error}; the run continues, and tries again"));
                }
            }
        }
    }

    /// Writes a line of metrics.jsonl, and passes the metrics to the watcher.
    fn figures(&mut self, prefix: &str, metrics: &Metrics) {
        let Some(disk) = &mut self.disk else { return };
        let lines = disk.metrics.as_mut().map(|lines| lines.push(metrics));
        // If one write fails, the other mostly fails too: warn once for both.
        let result = lines.into_iter().chain([self.watcher.figures(prefix, metrics)]).collect();
        self.wrote(result);
    }
}

/// The time between two checkpoints.
fn every(config: &RunConfig) -> Duration {
    let minutes = if config.output.save_minutes > 0.0 { config.output.save_minutes } else { f64::MAX };
    Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX)
}

impl Observer for Keeper<'_> {
    fn begin(&mut self, phase: Phase, total: usize) {
        self.watcher.begin(phase, total);
    }

    fn wish(&mut self) -> Wish {
        let wish = self.watcher.wish();
        self.stopping = wish == Wish::Stop;
        wish
    }

    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        self.watcher.advance(items, tokens)
    }

    fn left(&mut self, seconds: f64) {
        self.watcher.left(seconds);
    }

    fn end(&mut self) {
        self.watcher.end();
    }

    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        if let Some(samples) = self.disk.as_mut().and_then(|disk| disk.samples.as_mut()) {
            let mut wrote = Ok(());
            for (i, anchor) in pool.anchors.iter().enumerate() {
                let text = self.tokenizer.decode(&anchor.ids, true)?;
                wrote = samples.push(&json!({
                    "prompt": example.prompt,
                    "completion": Completion::sampled(&example.prompt, text, anchor.ended),
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
        }
        self.watcher.anchors(example, pool, reference)
    }

    fn cleaned(&mut self, cleaned: &Cleaned<'_>) -> Result<()> {
        if let Some(disk) = &self.disk {
            let mut text = String::new();
            for Judged { example, anchor, bad, kept } in &cleaned.anchors {
                let answer = self.tokenizer.decode_answer(&example.prompt_ids, &anchor.ids)?;
                let line = json!({
                    "prompt": example.prompt,
                    "completion": Completion::sampled(&example.prompt, answer, anchor.ended),
                    "line": example.line,
                    "bad": bad,
                    "kept": kept,
                    "weight": anchor.weight,
                });
                text += &format!("{line}\n");
            }
            let wrote = write_whole(&disk.folder.path().join("anchors.jsonl"), text.as_bytes());
            self.wrote(wrote);
        }
        self.watcher.cleaned(cleaned)
    }

    fn completions(&mut self, step: usize, asked: Asked, answers: &[(&Example, Answer)]) -> Result<()> {
        if let Some(lines) = self.disk.as_mut().and_then(|disk| disk.completions.as_mut()) {
            let mut wrote = Ok(());
            for (example, answer) in answers {
                let text = self.tokenizer.decode_answer(&example.prompt_ids, &answer.ids)?;
                wrote = lines.push(&json!({
                    "step": step,
                    "set": asked,
                    "line": example.line,
                    "prompt": example.prompt,
                    "completion": Completion::sampled(&example.prompt, text, answer.ended),
                }));
            }
            self.wrote(wrote);
        }
        self.watcher.completions(step, asked, answers)
    }

    fn chosen(&mut self, step: usize, examples: &[&Example]) {
        self.watcher.chosen(step, examples);
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.steps += 1;
        self.watcher.step(metrics)?;
        if self.steps.is_multiple_of(self.config.output.logging_steps) {
            self.figures("train/", metrics);
        }
        Ok(())
    }

    fn wants_state(&mut self, step: usize) -> bool {
        let snapshot_steps = self.config.gpu.snapshot_steps;
        let snapshot = snapshot_steps > 0 && step.is_multiple_of(snapshot_steps);
        snapshot || self.is_due(step)
    }

    fn wants_anchors(&mut self) -> bool {
        let least = every(self.config).min(ANCHORS_EVERY);
        self.disk.as_ref().is_some_and(|disk| disk.written.elapsed() >= least)
    }

    fn saved(&mut self, state: State) -> Result<()> {
        // Anchors are always written: they take long to sample.
        if state.trained().is_none_or(|step| self.is_due(step)) {
            self.write(&state);
        }
        self.last = Some(state);
        Ok(())
    }

    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        self.watcher.state(step, decoder)
    }

    fn noted(&mut self, text: &str) {
        self.watcher.noted(text);
    }

    fn warned(&mut self, text: &str) {
        self.watcher.warned(text);
    }

    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        self.watcher.evaluated(metrics)?;
        self.figures("eval/", metrics);
        Ok(())
    }
}
