//! A run's events for a Python function, and Ctrl-C.

use std::path::Path;
use std::time::{Duration, Instant};

use aweigh::error::{Error, Result};
use aweigh::run::{Loaded, Planned, Watcher};
use aweigh::train::{Metrics, Observer, Phase, Wish};
use aweigh_cli::terminal::interrupt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::{Value, json};

/// The least time between two events "progress".
const PAUSE: Duration = Duration::from_millis(200);

/// Passes events on and notes what Python answers.
pub struct Watch {
    callback: Option<Py<PyAny>>,
    wish: Wish,
    phase: Option<Phase>,
    done: usize,
    total: usize,
    left: Option<f64>,
    told: Option<Instant>,
    stopped: bool,
    /// An exception of the callback: it ends the run, and is raised when the run has ended.
    pub failed: Option<PyErr>,
}

impl Watch {
    pub fn new(callback: Option<Py<PyAny>>) -> Self {
        let (phase, left, told, failed) = (None, None, None, None);
        Self { callback, wish: Wish::GoOn, phase, done: 0, total: 0, left, told, stopped: false, failed }
    }

    /// Calls the function with an event. It may answer "finish" or "stop".
    fn tell(&mut self, event: Value) {
        let Some(callback) = self.callback.as_ref().filter(|_| self.failed.is_none()) else { return };
        let answer = Python::attach(|py| {
            let answer = callback.call1(py, (event.to_string(),))?;
            match answer.extract::<Option<String>>(py)?.as_deref() {
                None => Ok(Wish::GoOn),
                Some("finish") => Ok(Wish::Finish),
                Some("stop") => Ok(Wish::Stop),
                Some(other) => {
                    let message = format!("progress returned {other:?}, not None, \"finish\" or \"stop\"");
                    Err(PyValueError::new_err(message))
                }
            }
        });
        match answer {
            Ok(Wish::GoOn) => {}
            Ok(wish) => self.wish = wish,
            Err(error) => self.failed = Some(error),
        }
    }

    /// Whether to stop: the callback failed, or a signal such as Ctrl-C came, which Python tells only once.
    fn ends(&mut self) -> bool {
        self.stopped |= self.failed.is_some() || interrupt::asked();
        self.stopped
    }
}

impl Observer for Watch {
    fn begin(&mut self, phase: Phase, total: usize) {
        (self.phase, self.done, self.total, self.told) = (Some(phase), 0, total, None);
        self.tell(json!({ "event": "phase", "phase": phase, "total": total }));
    }

    fn wish(&mut self) -> Wish {
        if self.ends() { Wish::Stop } else { self.wish }
    }

    fn advance(&mut self, items: usize, _: usize) -> Result<()> {
        self.done += items;
        if self.told.is_none_or(|told| told.elapsed() >= PAUSE) {
            self.told = Some(Instant::now());
            let (phase, done, total, left) = (self.phase, self.done, self.total, self.left);
            let event = json!({ "event": "progress", "phase": phase, "done": done, "total": total,
                "seconds_left": left });
            self.tell(event);
        }
        // In training, `wish` stops the run after the step, with a checkpoint.
        let training = self.phase == Some(Phase::Training);
        if !training && self.ends() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn left(&mut self, seconds: f64) {
        self.left = Some(seconds);
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.tell(json!({ "event": "step", "metrics": metrics }));
        Ok(())
    }

    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        self.tell(json!({ "event": "evaluation", "metrics": metrics }));
        Ok(())
    }

    fn noted(&mut self, text: &str) {
        self.tell(json!({ "event": "note", "text": text }));
    }

    fn warned(&mut self, text: &str) {
        self.tell(json!({ "event": "warning", "text": text }));
    }
}

impl Watcher for Watch {
    fn planned(&mut self, planned: &Planned) {
        let (peak, changed) = (planned.plan.peak().total, &planned.fitted);
        self.tell(json!({ "event": "plan", "memory_peak": peak, "changed": changed }));
    }

    fn loaded(&mut self, loaded: &Loaded) -> Result<()> {
        let (gpu, why) = (loaded.gpu.summary(), loaded.gpu.why());
        loaded.tokenizer.remarks().iter().for_each(|remark| self.warned(remark));
        let parameters = loaded.setup.decoder.config().parameters();
        self.tell(json!({ "event": "loaded", "gpu": gpu.name, "backend": gpu.backend, "why": why,
            "model": loaded.model, "parameters": parameters }));
        Ok(())
    }

    fn rewound(&mut self, folder: Option<&Path>, from: Option<usize>) -> Result<()> {
        if let (Some(folder), Some(step)) = (folder, from) {
            self.tell(json!({ "event": "resumed", "output_dir": folder, "step": step }));
        }
        Ok(())
    }
}
