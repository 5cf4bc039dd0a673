//! The model that the app has open, and the engine that answers with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use serde::Serialize;

use super::workspace::Project;
use super::{Settings, guarded};
use crate::open;
use crate::server::api;
use crate::server::engine::{Adapted, Engine, Models, USUAL_CONTEXT};
use crate::tasks::start;
use aweigh::data::ChatTokenizer;
use aweigh::error::Result;
use aweigh::files::{Model, disk};
use aweigh::sample::Seating;

/// Answers that are sampled at the same time: one for each of a few pages, and two to compare.
pub const SEATS: usize = 4;

/// The name of the base model in requests.
pub const BASE: &str = "base";

/// The name of run `id`'s adapter in requests.
pub fn name_of(id: u32) -> String {
    format!("run-{id}")
}

/// What the page shows of the model.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// No model is on the GPU; why, if the user did not ask for that.
    Closed {
        /// The reason in words.
        why: Option<String>,
    },
    /// A model is being loaded; the file that is downloaded, and its bytes.
    Opening {
        /// The file's name; empty while nothing is downloaded.
        file: String,
        /// Bytes so far.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// The model answers.
    Ready {
        /// Its number of parameters.
        parameters: usize,
        /// The room for a conversation, in tokens.
        context: usize,
        /// Whether conversations can be rendered.
        chat: bool,
        /// The names that requests may give.
        models: Vec<String>,
    },
    /// It could not be loaded, or it has stopped.
    Failed {
        /// The message.
        error: String,
    },
}

/// A model on the GPU.
struct Serving {
    engine: Arc<Engine>,
    routes: Router,
    parameters: usize,
    chat: bool,
}

enum State {
    Closed(Option<String>),
    Opening(Arc<Mutex<(String, u64, u64)>>),
    Ready(Serving),
    Failed(String),
}

/// The open project, and its model.
pub struct Current {
    settings: Settings,
    inner: Mutex<Inner>,
    /// Held while a model is taken off the GPU or loaded.
    loading: tokio::sync::Mutex<()>,
}

struct Inner {
    project: Option<Arc<Project>>,
    state: State,
    /// Engines that are to end, or end just now.
    outgoing: Vec<Arc<Engine>>,
    /// Raised whenever a model is opened or closed: what was begun before does not count any more.
    generation: u64,
}

impl Current {
    /// Nothing is open yet.
    pub fn new(settings: Settings) -> Self {
        let inner = Inner { project: None, state: State::Closed(None), outgoing: Vec::new(), generation: 0 };
        Self { settings, inner: Mutex::new(inner), loading: tokio::sync::Mutex::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open project.
    pub fn project(&self) -> Option<Arc<Project>> {
        self.lock().project.clone()
    }

    /// What the page shows.
    pub fn status(&self) -> Status {
        let mut inner = self.lock();
        if let State::Ready(serving) = &inner.state
            && serving.engine.ended()
        {
            let error = serving.engine.failure().unwrap_or_default();
            inner.state = State::Failed(format!("the model has stopped answering: {error}"));
        }
        match &inner.state {
            State::Closed(why) => Status::Closed { why: why.clone() },
            State::Opening(progress) => {
                let (file, done, total) = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Status::Opening { file, done, total }
            }
            State::Ready(serving) => Status::Ready {
                parameters: serving.parameters,
                context: serving.engine.seating().context,
                chat: serving.chat,
                models: serving.engine.served().into_iter().map(|served| served.name).collect(),
            },
            State::Failed(error) => Status::Failed { error: error.clone() },
        }
    }

    /// The routes of the model that answers.
    pub fn routes(&self) -> Option<Router> {
        match &self.lock().state {
            State::Ready(serving) => Some(serving.routes.clone()),
            _ => None,
        }
    }

    /// The engine of the model that answers.
    pub fn engine(&self) -> Option<Arc<Engine>> {
        match &self.lock().state {
            State::Ready(serving) => Some(serving.engine.clone()),
            _ => None,
        }
    }

    /// Whether a model answers, or will.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().state, State::Ready(_) | State::Opening(_))
    }

    /// Sets the state. The engine that was there is to end. Returns the new generation.
    fn replace(&self, project: Option<Arc<Project>>, state: State) -> u64 {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.project = project.or(inner.project.take());
        if let State::Ready(serving) = std::mem::replace(&mut inner.state, state) {
            inner.outgoing.push(serving.engine);
        }
        inner.generation
    }

    /// Ends the engines that are to end, so that their models are off the GPU. Whoever calls it holds
    /// `loading`.
    async fn finish(&self) {
        let outgoing = std::mem::take(&mut self.lock().outgoing);
        for engine in outgoing {
            if let Err(error) = engine.finish().await {
                self.settings.messages.warn(&error);
            }
        }
    }

    /// Takes the model off the GPU; the project stays open. Waits until it is off, also for a model that is
    /// still being loaded.
    pub async fn close(&self, why: Option<String>) {
        self.replace(None, State::Closed(why));
        let _loading = self.loading.lock().await;
        self.finish().await;
    }

    /// Opens `project`, and begins to load its model. [`Current::status`] says when it answers.
    pub fn open(self: &Arc<Self>, project: Arc<Project>) {
        let progress = Arc::new(Mutex::new((String::new(), 0, 0)));
        let generation = self.replace(Some(project.clone()), State::Opening(progress.clone()));
        let own = self.clone();
        let opened = start("open", async move || {
            let fetched = guarded("opening the model", async { own.fetch(&project, &progress) }).await;
            // One model at a time on the GPU: two may not fit.
            let _loading = own.loading.lock().await;
            own.finish().await;
            if own.lock().generation != generation {
                return;
            }
            let loaded = match fetched {
                Ok(model) => guarded("loading the model", own.load(&project, model)).await,
                Err(error) => Err(error),
            };
            own.keep(generation, loaded);
            own.finish().await;
        });
        if let Err(error) = opened {
            self.lock().state = State::Failed(error.to_string());
        }
    }

    /// Takes a model that was loaded. If it was closed meanwhile, or another one opened, it is to end.
    fn keep(&self, generation: u64, loaded: Result<Serving>) {
        let mut inner = self.lock();
        match loaded {
            Ok(serving) if inner.generation != generation => inner.outgoing.push(serving.engine),
            _ if inner.generation != generation => {}
            Ok(serving) => inner.state = State::Ready(serving),
            Err(error) => inner.state = State::Failed(error.to_string()),
        }
    }

    /// Opens the files of the model of `project`, and downloads them if they are not there.
    fn fetch(&self, project: &Project, progress: &Mutex<(String, u64, u64)>) -> Result<Model> {
        let mut tell = |file: &str, done, total| {
            *progress.lock().unwrap_or_else(PoisonError::into_inner) = (file.to_owned(), done, total);
        };
        let model = open::model_with(&project.model, true, &mut tell, &*self.settings.messages)?;
        *progress.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        Ok(model)
    }

    /// Loads the model of `project`, and the adapters of its runs, onto the GPU.
    async fn load(&self, project: &Project, model: Model) -> Result<Serving> {
        let Settings { gpu: options, weights, messages } = &self.settings;
        let tokenizer: ChatTokenizer = open::tokenizer(&model, &**messages)?;
        let gpu = open::gpu(options).await?;
        let base = open::stored(&model, *weights).decoder_with(&gpu, None)?;
        let mut adapters = Vec::new();
        for id in project.runs().into_iter().filter(|&id| disk::is_dir(&project.adapter(id))) {
            let own = (name_of(id), project.adapter(id));
            match Adapted::load(&gpu, (&model, &base), own, "the run's adapter", &**messages) {
                Ok(adapted) => adapters.push(adapted),
                Err(error) => messages.warn(&format_args!("run {id} is left out: {error}")),
            }
        }
        let seating = Seating { seats: SEATS, context: base.context().min(USUAL_CONTEXT) };
        let (parameters, chat) = (base.config().parameters(), tokenizer.has_template());
        let (options, name) = (options.clone(), BASE.into());
        let models = Models { options, weights: *weights, gpu, model, base, name, adapters };
        let engine = Arc::new(Engine::start(models, seating, 2 * SEATS, messages.clone())?);
        let app = api::App {
            engine: engine.clone(),
            tokenizer: Arc::new(tokenizer),
            adapters: None,
            next: 0.into(),
        };
        Ok(Serving { engine, routes: api::routes(Arc::new(app)), parameters, chat })
    }

    /// Lets the model that answers load the adapter of run `id`, if there is one.
    pub async fn add_run(&self, project: &Project, id: u32) {
        let Some(engine) = self.engine() else { return };
        let folder = project.adapter(id);
        if disk::is_dir(&folder)
            && let Err(failure) = engine.load(&name_of(id), &folder).await
        {
            self.settings.messages.warn(&format_args!("run {id} cannot be asked: {failure:?}"));
        }
    }

    /// Lets the model that answers drop the adapter of run `id`.
    pub async fn drop_run(&self, id: u32) {
        if let Some(engine) = self.engine() {
            let _ = engine.unload(&name_of(id)).await;
        }
    }
}
