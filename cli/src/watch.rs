//! A run on the terminal: progress, notes and warnings, TensorBoard's file, and Ctrl-C.

use std::path::{Path, PathBuf};

use crate::open;
use crate::terminal::interrupt;
use crate::terminal::memory;
use crate::terminal::output::Output;
use crate::terminal::progress::{Progress, Unit};
use aweigh::error::{Error, Result};
use aweigh::files::write_whole;
use aweigh::run::{Finished, Loaded, Planned, Saving, Watcher};
use aweigh::train::{Metrics, Observer, Phase, State, Wish};
use aweigh_app::tensorboard::Events;

/// A command's hook, called when the model of its run is loaded.
pub type OnLoaded<'a> = Box<dyn FnMut(&Loaded) -> Result<()> + 'a>;

/// Watches a run for a command.
pub struct Watch<'a> {
    output: &'a Output,
    /// The command that resumes the run, as in "aweigh align --resume".
    command: &'static str,
    on_loaded: OnLoaded<'a>,
    tells_plan: bool,
    /// Files to write into the run's new folder: name and content.
    files: Vec<(&'static str, Vec<u8>)>,
    folder: Option<PathBuf>,
    events: Option<Events>,
    progress: Option<Progress>,
    training: bool,
    /// The point of the last checkpoint, as in "after step 3".
    kept: Option<String>,
}

impl<'a> Watch<'a> {
    /// Watches a run that `command` resumes.
    pub fn new(output: &'a Output, command: &'static str) -> Self {
        Self {
            output,
            command,
            on_loaded: Box::new(|_| Ok(())),
            tells_plan: true,
            files: Vec::new(),
            folder: None,
            events: None,
            progress: None,
            training: false,
            kept: None,
        }
    }

    /// Calls `hook` when the model is loaded.
    pub fn on_loaded(self, hook: impl FnMut(&Loaded) -> Result<()> + 'a) -> Self {
        Self { on_loaded: Box::new(hook), ..self }
    }

    /// Does not print the memory plan.
    pub fn without_plan(self) -> Self {
        Self { tells_plan: false, ..self }
    }

    /// Writes a file into the run's folder when the folder is made.
    pub fn with_file(mut self, name: &'static str, bytes: Vec<u8>) -> Self {
        self.files.push((name, bytes));
        self
    }

    /// Calls `run`. If the run is interrupted, prints how to resume it.
    ///
    /// # Errors
    /// As `run`.
    pub fn over(mut self, run: impl FnOnce(&mut Self) -> Result<Finished>) -> Result<Finished> {
        let ended = run(&mut self);
        self.progress = None;
        if let (Err(Error::Interrupted), Some(folder)) = (&ended, &self.folder) {
            self.output.note(match &self.kept {
                Some(place) => {
                    format!("stopped {place}; resume with: {} {}", self.command, folder.display())
                }
                None => "stopped before there was anything to save: no prompt has all its anchors yet, and \
                         no step is done"
                    .into(),
            });
        }
        ended
    }

    fn say(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None => self.output.note(text),
        }
    }
}

impl Observer for Watch<'_> {
    fn begin(&mut self, phase: Phase, total: usize) {
        self.training = phase == Phase::Training;
        let unit = if self.training { Unit::Steps } else { Unit::Items };
        self.progress = Some(self.output.progress(&phase.to_string(), total as u64, unit).told());
    }

    fn wish(&mut self) -> Wish {
        if interrupt::asked() { Wish::Stop } else { Wish::GoOn }
    }

    fn advance(&mut self, items: usize, tokens: usize) -> Result<()> {
        if let Some(progress) = &mut self.progress {
            progress.advance(items as u64, tokens as u64);
        }
        // With a folder, training stops through `wish` instead: after the step, with a checkpoint.
        if self.training && self.folder.is_some() { Ok(()) } else { interrupt::check() }
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

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        let shown = |name: &str| metrics.get(name).map(|v| format!("{name} {v:.3}"));
        let words = ["loss", "rewards/anchor", "rewards/negative", "rewards/chosen", "rewards/rejected"];
        if let Some(progress) = &mut self.progress {
            progress.words(words.iter().filter_map(|&name| shown(name)).collect::<Vec<_>>().join("  "));
        }
        Ok(())
    }

    fn noted(&mut self, text: &str) {
        self.say(text);
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
        const SHOWN: [&str; 7] = [
            "global_step",
            "eval_completions/unwanted",
            "eval_ordinary/refusal",
            "eval_rewards/margins",
            "eval_logps_per_token/anchor",
            "eval_kl/anchor",
            "eval_perplexity",
        ];
        let line: Vec<String> =
            metrics.0.iter().filter(|(name, _)| SHOWN.contains(&name.as_str())).map(short).collect();
        self.say(&line.join("  "));
        Ok(())
    }
}

impl Watcher for Watch<'_> {
    fn planned(&mut self, planned: &Planned) {
        if self.tells_plan {
            self.output.note(memory::plan(&planned.plan, &planned.fitted));
        }
    }

    fn loaded(&mut self, loaded: &Loaded) -> Result<()> {
        open::announce(loaded.gpu, loaded.model, None, &loaded.setup.decoder, self.output);
        loaded.tokenizer.remarks().iter().for_each(|remark| self.output.warn(remark));
        (self.on_loaded)(loaded)
    }

    fn rewound(&mut self, folder: Option<&Path>, from: Option<usize>) -> Result<()> {
        (self.progress, self.training) = (None, false);
        let Some(folder) = folder else { return Ok(()) };
        for (name, bytes) in self.files.drain(..) {
            write_whole(&folder.join(name), &bytes)?;
        }
        // Closes the old file before it is opened again.
        self.events = None;
        self.events = Some(Events::resume(folder, from)?);
        self.folder = Some(folder.into());
        Ok(())
    }

    fn figures(&mut self, prefix: &str, metrics: &Metrics) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.push(prefix, metrics))
    }

    fn kept(&mut self, state: &State) {
        self.kept = Some(state.place());
    }

    fn too_large(&mut self, savings: &[Saving]) {
        if !savings.is_empty() {
            let table = memory::savings(savings);
            self.output.warn(format_args!(
                "the GPU has too little memory for this run; settings that need less:\n{table}"
            ));
        }
    }
}
