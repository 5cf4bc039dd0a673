//! A run while it is going on: what the page shows of it, and what the user wants it to do.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::tensorboard::Events;
use aweigh::data::ChatTokenizer;
use aweigh::error::{Error, Result};
use aweigh::run::{Loaded, Planned, Saving, Watcher};
use aweigh::score::Scored;
use aweigh::train::{Metrics, Observer, Phase, Pool, Wish};

/// The most anchors and messages that are kept.
const KEPT: usize = 12;

/// What a run is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The model is being loaded.
    #[default]
    Loading,
    /// It samples, scores or trains.
    Running,
    /// It saves its state and ends.
    Pausing,
    /// It ends with its best state.
    Finishing,
    /// It has saved its state.
    Paused,
    /// It has a result.
    Finished,
    /// It has ended with an error.
    Failed,
}

/// The anchors of one prompt.
#[derive(Debug, Clone, Serialize)]
pub struct Sampled {
    /// The prompt's last message.
    pub prompt: String,
    /// The anchors.
    pub anchors: Vec<String>,
}

/// What the page shows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// The run's number.
    pub id: u32,
    /// The project's folder.
    pub project: String,
    /// What it is doing.
    pub stage: Stage,
    /// The phase, with its items.
    pub phase: Option<Phase>,
    /// Items done.
    pub done: usize,
    /// All items of the phase.
    pub total: usize,
    /// Estimated seconds until the run ends.
    pub left: Option<f64>,
    /// The last step's metrics.
    pub metrics: BTreeMap<String, f64>,
    /// The anchors that were sampled last.
    pub sampled: VecDeque<Sampled>,
    /// Notes and warnings, the last ones last.
    pub messages: VecDeque<String>,
    /// Planned peak of GPU memory, in bytes.
    pub planned: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// A run's view and the user's wishes, shared by the run's task and the page.
pub struct Live {
    view: Mutex<View>,
    pause: AtomicBool,
    finish: AtomicBool,
}

impl Live {
    /// Run `id` of a project, before it begins.
    pub fn new(project: String, id: u32) -> Arc<Self> {
        let view = Mutex::new(View { id, project, ..View::default() });
        Arc::new(Self { view, pause: AtomicBool::new(false), finish: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the page shows now.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    /// Whether the run still goes on.
    pub fn goes_on(&self) -> bool {
        !matches!(self.lock().stage, Stage::Paused | Stage::Finished | Stage::Failed)
    }

    /// Asks the run to save its state and end.
    pub fn pause(&self) {
        self.pause.store(true, Ordering::SeqCst);
        self.going_on(Stage::Pausing);
    }

    /// Asks the run to end with its best state.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::SeqCst);
        self.going_on(Stage::Finishing);
    }

    fn going_on(&self, stage: Stage) {
        let mut view = self.lock();
        if matches!(view.stage, Stage::Loading | Stage::Running) {
            view.stage = stage;
        }
    }

    /// The run has ended.
    pub fn ended(&self, ended: &Result<()>) {
        let mut view = self.lock();
        (view.left, view.phase) = (None, None);
        view.stage = match ended {
            Ok(()) => Stage::Finished,
            Err(Error::Interrupted) => Stage::Paused,
            Err(error) => {
                view.error = Some(error.to_string());
                Stage::Failed
            }
        };
    }

    fn pausing(&self) -> bool {
        self.pause.load(Ordering::SeqCst)
    }

    fn say(&self, text: &str) {
        let mut view = self.lock();
        if view.messages.len() == KEPT {
            view.messages.pop_front();
        }
        view.messages.push_back(text.to_owned());
    }
}

/// Watches a run for the page.
pub struct Watch {
    live: Arc<Live>,
    tokenizer: ChatTokenizer,
    events: Option<Events>,
    training: bool,
    /// Steps that were done when the run was resumed.
    from: usize,
}

impl Watch {
    /// Watches the run of `live`, whose model has `tokenizer`.
    pub fn new(live: Arc<Live>, tokenizer: ChatTokenizer) -> Self {
        Self { live, tokenizer, events: None, training: false, from: 0 }
    }
}

impl Observer for Watch {
    fn begin(&mut self, phase: Phase, total: usize) {
        self.training = phase == Phase::Training;
        let mut view = self.live.lock();
        let before = if self.training { self.from } else { 0 };
        (view.phase, view.done, view.total) = (Some(phase), before, before + total);
        if view.stage == Stage::Loading {
            view.stage = Stage::Running;
        }
    }

    fn wish(&mut self) -> Wish {
        match () {
            () if self.live.pausing() => Wish::Stop,
            () if self.live.finish.load(Ordering::SeqCst) => Wish::Finish,
            () => Wish::GoOn,
        }
    }

    fn advance(&mut self, items: usize, _: usize) -> Result<()> {
        self.live.lock().done += items;
        // Training stops through `wish` instead: after the step, with a checkpoint.
        if !self.training && self.live.pausing() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn left(&mut self, seconds: f64) {
        self.live.lock().left = Some(seconds);
    }

    fn anchors(&mut self, example: &aweigh::data::Example, pool: &Pool, _: &[Scored]) -> Result<()> {
        let text = |ids: &[u32]| self.tokenizer.decode_answer(&example.prompt_ids, ids);
        let anchors = pool.ids().map(text).collect::<Result<Vec<String>>>()?;
        let mut view = self.live.lock();
        if view.sampled.len() == KEPT {
            view.sampled.pop_front();
        }
        view.sampled.push_back(Sampled { prompt: example.prompt.last_text().to_owned(), anchors });
        Ok(())
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.live.lock().metrics.extend(metrics.0.iter().cloned());
        Ok(())
    }

    fn evaluated(&mut self, metrics: &Metrics) -> Result<()> {
        self.step(metrics)
    }

    fn noted(&mut self, text: &str) {
        self.live.say(text);
    }

    fn warned(&mut self, text: &str) {
        self.live.say(text);
    }
}

impl Watcher for Watch {
    fn planned(&mut self, planned: &Planned) {
        self.live.lock().planned = planned.plan.peak().total;
        for change in &planned.fitted {
            self.live.say(&format!("changed to fit into memory: {change}"));
        }
    }

    fn loaded(&mut self, loaded: &Loaded) -> Result<()> {
        self.live.say(&loaded.lengths.to_string());
        Ok(())
    }

    fn rewound(&mut self, folder: Option<&Path>, from: Option<usize>) -> Result<()> {
        self.from = from.unwrap_or(0);
        // Closes the old file before it is opened again.
        self.events = None;
        self.events = folder.map(|folder| Events::resume(folder, from)).transpose()?;
        Ok(())
    }

    fn figures(&mut self, prefix: &str, metrics: &Metrics) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.push(prefix, metrics))
    }

    fn too_large(&mut self, savings: &[Saving]) {
        for saving in savings {
            let bytes = crate::text::bytes(saving.peak);
            self.live.say(&format!("{} would need {bytes}", saving.flag));
        }
    }
}
