//! The app: a page on the user's own machine on which they chat with their model, flag answers, align it,
//! compare, and take the result away.
//!
//! [`routes`] is what the page asks; [`current`] the model that answers it, with the server's engine;
//! [`runs`] starts runs, which [`live`] watches; [`jobs`] compares and exports. All that is kept is in
//! [`workspace`]. The page itself is in `page/`, with one `Engine` interface over these routes.

pub mod chats;
pub mod current;
pub mod exports;
pub mod flags;
pub mod jobs;
pub mod live;
pub mod models;
pub mod page;
pub mod routes;
pub mod runs;
pub mod votes;
pub mod workspace;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::args::{GpuArgs, WeightArgs};
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use current::Current;
use jobs::Job;
use live::Live;
use workspace::Workspace;

/// What the app was started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The GPU.
    pub gpu: GpuArgs,
    /// How the weights of the model that answers are stored.
    pub weights: WeightArgs,
    /// The terminal.
    pub output: Output,
}

/// The app's state, which all requests share.
pub struct App {
    /// What it was started with.
    pub settings: Settings,
    /// The user's files.
    pub workspace: Workspace,
    /// The model that answers.
    pub current: Arc<Current>,
    run: Mutex<Option<Arc<Live>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    job: Mutex<Option<Arc<Job>>>,
}

impl App {
    /// An app with its files in `workspace`.
    pub fn new(settings: Settings, workspace: Workspace) -> Arc<Self> {
        let current = Arc::new(Current::new(settings.clone()));
        let (run, thread, job) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        Arc::new(Self { settings, workspace, current, run, thread, job })
    }

    /// The run that was started last, which may have ended.
    pub fn live(&self) -> Option<Arc<Live>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The work that was begun last, which may have ended.
    pub fn job(&self) -> Option<Arc<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails while a run or other work goes on.
    ///
    /// # Errors
    /// [`Error::Input`], which says what goes on.
    pub fn idle(&self) -> Result<()> {
        if let Some(live) = self.live().filter(|live| live.goes_on()) {
            let found = format!("run {} goes on", live.view().id);
            return Err(busy(found, "pause it, or wait until it has ended"));
        }
        match self.job().map(|job| job.view()).filter(|view| !view.ended) {
            Some(view) => Err(busy(format!("{} of run {} goes on", view.what, view.run), "wait for it")),
            None => Ok(()),
        }
    }

    /// Makes `live` the run that goes on.
    ///
    /// # Errors
    /// As [`App::idle`].
    fn claim(&self, live: Arc<Live>) -> Result<()> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if run.as_ref().is_some_and(|run| run.goes_on()) {
            return Err(busy("a run goes on".into(), "pause it, or wait until it has ended"));
        }
        *run = Some(live);
        Ok(())
    }

    fn keep_thread(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// Makes `job` the work that goes on.
    ///
    /// # Errors
    /// As [`App::idle`].
    fn claim_job(&self, job: Arc<Job>) -> Result<()> {
        let mut own = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = self.live().filter(|live| live.goes_on()) {
            let found = format!("run {} goes on", live.view().id);
            return Err(busy(found, "pause it, or wait until it has ended"));
        }
        if own.as_ref().is_some_and(|own| !own.view().ended) {
            return Err(busy("other work goes on".into(), "wait for it"));
        }
        *own = Some(job);
        Ok(())
    }

    /// Ends everything: a run saves its state first, so that it can be resumed.
    pub fn end(&self) {
        if let Some(job) = self.job() {
            job.cancel();
        }
        if let Some(live) = self.live() {
            live.pause();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.current.close(None);
    }
}

fn busy(found: String, fix: &str) -> Error {
    Error::input("the app", "nothing that uses the GPU", found, fix)
}
