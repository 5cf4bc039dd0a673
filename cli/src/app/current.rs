//! The model that the app has open, and the engine that answers with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use pollster::block_on;
use serde::Serialize;

use super::workspace::Project;
use super::{Settings, guarded};
use crate::open;
use crate::server::api;
use crate::server::engine::{Adapted, Engine, Models, USUAL_CONTEXT};
use aweigh::data::ChatTokenizer;
use aweigh::error::Result;
use aweigh::files::Model;
use aweigh::files::hub::Download;
use aweigh::model::ModelBytes;
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
    /// Held while a model is loaded.
    loading: Mutex<()>,
}

struct Inner {
    project: Option<Arc<Project>>,
    state: State,
    /// Raised whenever a model is opened or closed: what was begun before does not count any more.
    generation: u64,
}

impl Current {
    /// Nothing is open yet.
    pub fn new(settings: Settings) -> Self {
        let inner = Inner { project: None, state: State::Closed(None), generation: 0 };
        Self { settings, inner: Mutex::new(inner), loading: Mutex::new(()) }
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
            let error = serving.engine.finish().err().map_or_else(String::new, |error| error.to_string());
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

    /// Sets the state, and ends what was there. Returns the new generation.
    fn replace(&self, project: Option<Arc<Project>>, state: State) -> u64 {
        let (engine, generation) = {
            let mut inner = self.lock();
            inner.generation += 1;
            inner.project = project.or(inner.project.take());
            let engine = match std::mem::replace(&mut inner.state, state) {
                State::Ready(serving) => Some(serving.engine),
                _ => None,
            };
            (engine, inner.generation)
        };
        if let Some(Err(error)) = engine.map(|engine| engine.finish()) {
            self.settings.output.warn(error);
        }
        generation
    }

    /// Takes the model off the GPU; the project stays open. A model that is still being loaded is dropped as
    /// soon as it is there: [`Current::settle`] waits for that.
    pub fn close(&self, why: Option<String>) {
        self.replace(None, State::Closed(why));
    }

    /// Waits until no model is being loaded.
    pub fn settle(&self) {
        drop(self.loading.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Opens `project`, and begins to load its model. [`Current::status`] says when it answers.
    pub fn open(self: &Arc<Self>, project: Arc<Project>) {
        let progress = Arc::new(Mutex::new((String::new(), 0, 0)));
        let generation = self.replace(Some(project.clone()), State::Opening(progress.clone()));
        let own = self.clone();
        let body = move || {
            let fetched = guarded("opening the model", || own.fetch(&project, &progress));
            // One model at a time on the GPU: two may not fit.
            let _loading = own.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if own.lock().generation != generation {
                return;
            }
            let load = |model| guarded("loading the model", || own.load(&project, model));
            let loaded = fetched.and_then(load);
            let mut inner = own.lock();
            if inner.generation == generation {
                inner.state = match loaded {
                    Ok(serving) => State::Ready(serving),
                    Err(error) => State::Failed(error.to_string()),
                };
            } else if let Ok(serving) = loaded {
                // Somebody has closed it, or opened another one.
                drop(inner);
                let _ = serving.engine.finish();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("open".into()).spawn(body) {
            self.lock().state = State::Failed(format!("no thread: {error}"));
        }
    }

    /// Opens the files of the model of `project`, and downloads them if they are not there.
    fn fetch(&self, project: &Project, progress: &Mutex<(String, u64, u64)>) -> Result<Model> {
        let mut tell = |download: Download| {
            let Download { file, done, total } = download;
            *progress.lock().unwrap_or_else(PoisonError::into_inner) = (file.to_owned(), done, total);
        };
        let model = open::model_with(&project.model, true, &mut tell, &self.settings.output)?;
        *progress.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        Ok(model)
    }

    /// Loads the model of `project`, and the adapters of its runs, onto the GPU.
    fn load(&self, project: &Project, model: Model) -> Result<Serving> {
        let Settings { gpu: options, weights, output } = &self.settings;
        let tokenizer: ChatTokenizer = open::tokenizer(&model, output)?;
        let gpu = open::gpu(options)?;
        let files = ModelBytes { quantize: weights.quantize, offload: weights.offload, ..model.bytes() };
        let base = files.decoder_with(&gpu, None)?;
        let mut adapters = Vec::new();
        for id in project.runs().into_iter().filter(|&id| project.adapter(id).is_dir()) {
            let own = (name_of(id), project.adapter(id));
            match Adapted::load(&gpu, (&model, &base), own, "the run's adapter", output) {
                Ok(adapted) => adapters.push(adapted),
                Err(error) => output.warn(format_args!("run {id} is left out: {error}")),
            }
        }
        let seating = Seating { seats: SEATS, context: base.context().min(USUAL_CONTEXT) };
        let (parameters, chat) = (base.config().parameters(), tokenizer.has_template());
        let (options, name) = (options.clone(), BASE.into());
        let models = Models { options, weights: *weights, gpu, model, base, name, adapters };
        let engine = Arc::new(Engine::start(models, seating, 2 * SEATS, *output)?);
        let app = api::App {
            engine: engine.clone(),
            tokenizer: Arc::new(tokenizer),
            adapters: None,
            next: 0.into(),
        };
        Ok(Serving { engine, routes: api::routes(Arc::new(app)), parameters, chat })
    }

    /// Lets the model that answers load the adapter of run `id`, if there is one.
    pub fn add_run(&self, project: &Project, id: u32) {
        let Some(engine) = self.engine() else { return };
        let folder = project.adapter(id);
        if folder.is_dir()
            && let Err(failure) = block_on(engine.load(&name_of(id), &folder))
        {
            self.settings.output.warn(format_args!("run {id} cannot be asked: {failure:?}"));
        }
    }

    /// Lets the model that answers drop the adapter of run `id`.
    pub fn drop_run(&self, id: u32) {
        if let Some(engine) = self.engine() {
            let _ = block_on(engine.unload(&name_of(id)));
        }
    }
}
