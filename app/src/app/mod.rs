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

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::args::{GpuArgs, WeightArgs};
use crate::messages::Messages;
use crate::tasks::Task;
use aweigh::error::{Error, Result};
use current::Current;
use futures_util::FutureExt;
use jobs::Job;
use live::Live;
use workspace::{Project, Workspace};

/// What the app was started with.
#[derive(Clone)]
pub struct Settings {
    /// The GPU.
    pub gpu: GpuArgs,
    /// How the weights of the model that answers are stored.
    pub weights: WeightArgs,
    /// Where notes and warnings go.
    pub messages: Arc<dyn Messages>,
}

/// The app's state, which all requests share.
pub struct App {
    /// What it was started with.
    pub settings: Settings,
    /// The user's files.
    pub workspace: Workspace,
    /// The model that answers.
    pub current: Arc<Current>,
    /// What uses the GPU besides the chat. Whoever changes it, or the open model, holds the lock.
    activity: Mutex<Activity>,
}

/// The run and the work that were begun last, and their tasks. They may have ended.
#[derive(Default)]
pub struct Activity {
    run: Option<Arc<Live>>,
    job: Option<Arc<Job>>,
    tasks: Vec<Task<()>>,
    /// Whether the app is ending: nothing new is begun.
    ending: bool,
}

impl Activity {
    /// Fails while a run or other work goes on, and while the app is ending.
    ///
    /// # Errors
    /// [`Error::Input`], which says what goes on.
    pub fn idle(&self) -> Result<()> {
        if self.ending {
            return Err(busy("the app is ending".into(), "start it again"));
        }
        if let Some(live) = self.run.as_ref().filter(|live| live.goes_on()) {
            let found = format!("run {} goes on", live.view().id);
            return Err(busy(found, "pause it, or wait until it has ended"));
        }
        match self.job.as_ref().map(|job| job.view()).filter(|view| !view.ended) {
            Some(view) => Err(busy(format!("{} of run {} goes on", view.what, view.run), "wait for it")),
            None => Ok(()),
        }
    }

    /// Begins a run: nothing else goes on.
    pub fn begin_run(&mut self, live: Arc<Live>, task: Task<()>) {
        self.run = Some(live);
        self.keep(task);
    }

    /// Begins other work: nothing else goes on.
    pub fn begin_job(&mut self, job: Arc<Job>, task: Task<()>) {
        self.job = Some(job);
        self.keep(task);
    }

    fn keep(&mut self, task: Task<()>) {
        self.tasks.retain_mut(|task| !task.has_ended());
        self.tasks.push(task);
    }

    /// Forgets run `id` of `project`, which is removed.
    pub fn forget(&mut self, project: &Project, id: u32) {
        let is_it = |view: &live::View| view.id == id && view.project == project.id();
        self.run = self.run.take().filter(|live| !is_it(&live.view()));
        let is_it = |view: &jobs::View| view.run == id && view.project == project.id();
        self.job = self.job.take().filter(|job| !is_it(&job.view()));
    }
}

impl App {
    /// An app with its files in `workspace`.
    pub fn new(settings: Settings, workspace: Workspace) -> Arc<Self> {
        let current = Arc::new(Current::new(settings.clone()));
        Arc::new(Self { settings, workspace, current, activity: Mutex::new(Activity::default()) })
    }

    /// What uses the GPU besides the chat.
    pub fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run of `project` that was begun last, which may have ended.
    pub fn live(&self, project: &Project) -> Option<Arc<Live>> {
        self.activity().run.clone().filter(|live| live.view().project == project.id())
    }

    /// The work on `project` that was begun last, which may have ended.
    pub fn job(&self, project: &Project) -> Option<Arc<Job>> {
        self.activity().job.clone().filter(|job| job.view().project == project.id())
    }

    /// Opens the project of the model `name`, and begins to load the model.
    ///
    /// # Errors
    /// A model that is not there, flags that cannot be read, a run or other work that goes on.
    pub fn open(&self, name: &str) -> Result<()> {
        let name = models::identity(name)?;
        let activity = self.activity();
        activity.idle()?;
        let project = match self.current.project().filter(|own| own.model == name) {
            Some(own) => {
                own.reload()?;
                own
            }
            None => Arc::new(self.workspace.project(&name)?),
        };
        self.current.open(project);
        Ok(())
    }

    /// Whether the app is ending: nothing new is begun.
    pub fn ending(&self) -> bool {
        self.activity().ending
    }

    /// Ends everything, and waits until it has ended: a run saves its state first, so that it can be resumed.
    pub async fn end(&self) {
        for task in self.told_to_end() {
            task.end().await;
        }
        self.current.close(None).await;
    }

    /// Asks everything to end. Returns what goes on until then.
    fn told_to_end(&self) -> Vec<Task<()>> {
        let mut activity = self.activity();
        activity.ending = true;
        if let Some(job) = &activity.job {
            job.cancel();
        }
        if let Some(live) = &activity.run {
            live.pause();
        }
        std::mem::take(&mut activity.tasks)
    }
}

/// Does `work`; a panic is an error, so that nothing seems to go on for ever.
///
/// # Errors
/// As `work`.
pub async fn guarded<T>(doing: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|_| Err(Error::Internal { doing, message: "it panicked".into() }))
}

fn busy(found: String, fix: &str) -> Error {
    Error::input("the app", "nothing that uses the GPU", found, fix)
}
