//! The engine's task: it owns the GPU, the model and its adapters, and answers all requests together.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::args::{GpuArgs, WeightArgs};
use crate::messages::Messages;
use crate::open;
use aweigh::error::{Error, Result};
use aweigh::files::Model;
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::run::OpenGpu;
use aweigh::sample::{Batch, Job, News, Ticket};

/// What a request gets while it is answered.
pub type Piece = std::result::Result<News, Failure>;

/// Why a request was not answered.
#[derive(Debug, Clone)]
pub enum Failure {
    /// Nothing is wrong with the server: the message is about the request.
    Request(String),
    /// There is no such model, or not any more.
    NoModel(String),
    /// So many requests are waiting that no other is taken.
    Busy(usize),
    /// The server is ending.
    Ending,
    /// The GPU failed, or there is a bug.
    Server(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Input { .. } => Self::Request(error.to_string()),
            error => Self::Server(error.to_string()),
        }
    }
}

/// The channel of a request's pieces. While it exists, its job counts as taken.
pub(super) struct Listener {
    pub pieces: mpsc::UnboundedSender<Piece>,
    pub shared: Arc<Shared>,
}

impl Listener {
    /// Sends a piece. Returns whether anybody still listens.
    fn tell(&self, piece: Piece) -> bool {
        self.pieces.send(piece).is_ok()
    }

    fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the engine is asked to do.
pub(super) enum Command {
    /// Answer `job` with the model `name`.
    Answer { name: String, job: Job, listener: Listener },
    /// Load the adapter in `folder`, to be called `name`.
    Load { name: String, folder: PathBuf, done: oneshot::Sender<std::result::Result<(), Failure>> },
    /// Drop the adapter `name`.
    Unload { name: String, done: oneshot::Sender<std::result::Result<(), Failure>> },
}

/// A model that can be asked for: the base model, or an adapter on it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The name that requests give.
    pub name: String,
    /// The base model's name, for an adapter.
    pub parent: Option<String>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// What is served.
pub struct Models {
    /// How the GPU is opened.
    pub options: GpuArgs,
    /// How the weights are stored.
    pub weights: WeightArgs,
    /// The GPU.
    pub gpu: OpenGpu,
    /// The base model's files, which adapters are checked against.
    pub model: Model,
    /// The base model.
    pub base: Decoder,
    /// The name that requests give for the base model.
    pub name: String,
    /// The adapters.
    pub adapters: Vec<Adapted>,
}

/// An adapter on the GPU.
pub struct Adapted {
    /// The name that requests give.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its decoder, which shares the base model's weights.
    pub decoder: Decoder,
}

impl Adapted {
    /// Loads the adapter in `folder`, of the model `base`; `place` names it in messages.
    ///
    /// # Errors
    /// An adapter that is missing, damaged or made for another model.
    pub fn load(
        gpu: &Gpu,
        (model, base): (&Model, &Decoder),
        (name, folder): (String, PathBuf),
        place: &str,
        messages: &dyn Messages,
    ) -> Result<Self> {
        let files = open::adapter(&folder, place, model, messages)?;
        let decoder = base.with_adapter(gpu, &files.bytes().parse()?)?;
        Ok(Self { name, folder, decoder })
    }
}

/// How often in a row the GPU may be lost before a token is sampled.
const LOSSES: u32 = 3;

/// What the engine and its handle share.
pub(super) struct Shared {
    pub served: Mutex<Vec<Served>>,
    /// Jobs that are being answered or wait for a seat, and the most of them.
    pub taken: AtomicUsize,
    pub most_taken: usize,
    pub stopping: AtomicBool,
    pub ended: AtomicBool,
    /// Why it has ended, if that was an error.
    pub failure: OnceLock<String>,
}

impl Shared {
    pub fn served(&self) -> Vec<Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Served>)) {
        change(&mut self.served.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The engine.
pub(super) struct Worker {
    options: GpuArgs,
    weights: WeightArgs,
    gpu: OpenGpu,
    model: Model,
    /// The models by their keys; the base model's is 0.
    decoders: HashMap<u64, Decoder>,
    keys: HashMap<String, u64>,
    /// The adapters' folders.
    folders: HashMap<u64, PathBuf>,
    /// Losses of the GPU since a token was sampled.
    losses: u32,
    next_key: u64,
    batch: Batch,
    waiting: VecDeque<(Job, Listener)>,
    listeners: HashMap<Ticket, Listener>,
    shared: Arc<Shared>,
    messages: Arc<dyn Messages>,
}

impl Worker {
    pub fn new(models: Models, batch: Batch, shared: Arc<Shared>, messages: Arc<dyn Messages>) -> Self {
        let Models { options, weights, gpu, model, base, name, adapters } = models;
        let mut worker = Self {
            options,
            weights,
            gpu,
            model,
            decoders: HashMap::from([(0, base)]),
            keys: HashMap::from([(name, 0)]),
            folders: HashMap::new(),
            losses: 0,
            next_key: 1,
            batch,
            waiting: VecDeque::new(),
            listeners: HashMap::new(),
            shared,
            messages,
        };
        for adapted in adapters {
            worker.add(adapted);
        }
        worker
    }

    fn add(&mut self, Adapted { name, folder, decoder }: Adapted) {
        self.decoders.insert(self.next_key, decoder);
        self.keys.insert(name, self.next_key);
        self.folders.insert(self.next_key, folder);
        self.next_key += 1;
    }

    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) -> Result<()> {
        loop {
            while self.listeners.is_empty() && self.waiting.is_empty() {
                // Nothing to do until somebody asks.
                match commands.recv().await {
                    Some(command) => self.take(command),
                    None => return Ok(()),
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                self.end_all(&Failure::Ending);
                return Ok(());
            }
            self.drop_closed();
            self.admit();
            if self.listeners.is_empty() {
                continue;
            }
            let (gpu, decoders): (&Gpu, _) = (&self.gpu, &self.decoders);
            match self.batch.turn(gpu, &|key| &decoders[&key]).await {
                Ok(news) => {
                    if !news.is_empty() {
                        self.losses = 0;
                    }
                    self.tell(news);
                }
                Err(error @ Error::DeviceLost { .. }) if self.losses < LOSSES => {
                    self.losses += 1;
                    self.messages.warn(&format_args!("{error}; it is opened again"));
                    let failure = Failure::Server(format!("{error}; ask again"));
                    self.end_all(&failure);
                    self.reopen().await?;
                }
                Err(error) => {
                    self.end_all(&Failure::Server(error.to_string()));
                    return Err(error);
                }
            }
        }
    }

    /// Opens a lost GPU again, and loads the models that were on it.
    async fn reopen(&mut self) -> Result<()> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        let seating = self.batch.seating();
        self.decoders.clear();
        self.gpu = open::gpu(&self.options).await?;
        let base = open::stored(&self.model, self.weights).decoder_with(&self.gpu, None)?;
        self.decoders.insert(0, base);
        for (name, key) in self.keys.clone().into_iter().filter(|&(_, key)| key != 0) {
            let of = (&self.model, &self.decoders[&0]);
            let own = (name.clone(), self.folders[&key].clone());
            match Adapted::load(&self.gpu, of, own, "the adapter", &*self.messages) {
                Ok(adapted) => {
                    self.decoders.insert(key, adapted.decoder);
                }
                Err(error) => {
                    self.messages.warn(&format_args!("{name} is dropped: {error}"));
                    self.keys.remove(&name);
                    self.shared.change(|served| served.retain(|served| served.name != name));
                }
            }
        }
        let decoders: Vec<&Decoder> = self.decoders.values().collect();
        self.batch = Batch::new(&self.gpu, &decoders, seating)?;
        Ok(())
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Answer { name, mut job, listener } => match self.keys.get(&name) {
                Some(&key) => {
                    job.model = key;
                    self.waiting.push_back((job, listener));
                }
                None => {
                    listener.tell(Err(Failure::NoModel(name)));
                }
            },
            Command::Load { name, folder, done } => {
                let _ = done.send(self.load(name, &folder).map_err(Failure::from));
            }
            Command::Unload { name, done } => {
                let _ = done.send(self.unload(&name));
            }
        }
    }

    /// Drops the jobs whose requests were closed by their clients.
    fn drop_closed(&mut self) {
        self.waiting.retain(|(_, listener)| !listener.is_closed());
        let batch = &mut self.batch;
        self.listeners.retain(|&ticket, listener| {
            if listener.is_closed() {
                batch.cancel(ticket);
            }
            !listener.is_closed()
        });
    }

    /// Gives free seats to the jobs that have waited longest.
    fn admit(&mut self) {
        while self.batch.has_room()
            && let Some((job, listener)) = self.waiting.pop_front()
        {
            match self.batch.admit(&self.gpu, job) {
                Ok(ticket) => {
                    self.listeners.insert(ticket, listener);
                }
                Err(error) => {
                    listener.tell(Err(error.into()));
                }
            }
        }
    }

    fn tell(&mut self, news: Vec<News>) {
        for news in news {
            let ticket = news.ticket;
            let ended = news.end.is_some();
            let gone = self.listeners.get(&ticket).is_none_or(|listener| !listener.tell(Ok(news)));
            if gone && !ended {
                self.batch.cancel(ticket);
            }
            if gone || ended {
                self.listeners.remove(&ticket);
            }
        }
    }

    fn end_all(&mut self, failure: &Failure) {
        let waiting = self.waiting.drain(..).map(|(_, listener)| listener);
        for listener in waiting.chain(self.listeners.drain().map(|(_, listener)| listener)) {
            listener.tell(Err(failure.clone()));
        }
    }

    fn load(&mut self, name: String, folder: &Path) -> Result<()> {
        if self.keys.contains_key(&name) {
            let fix = "give another name, or unload it first";
            return Err(Error::input(
                "lora_name",
                "a name that is free",
                format!("{name:?}, which is loaded"),
                fix,
            ));
        }
        let of = (&self.model, &self.decoders[&0]);
        let own = (name.clone(), folder.to_owned());
        let adapted = Adapted::load(&self.gpu, of, own, "lora_path", &*self.messages)?;
        let others = self.decoders.values().collect::<Vec<_>>();
        self.batch.fit(&self.gpu, &[&others[..], &[&adapted.decoder]].concat())?;
        let parent = self.shared.served().first().map(|base| base.name.clone());
        self.shared.change(|served| served.push(Served { name, parent, created: now() }));
        self.add(adapted);
        Ok(())
    }

    fn unload(&mut self, name: &str) -> std::result::Result<(), Failure> {
        let Some(key) = self.keys.get(name).copied().filter(|&key| key != 0) else {
            return Err(Failure::NoModel(name.to_owned()));
        };
        self.keys.remove(name);
        self.shared.change(|served| served.retain(|served| served.name != name));
        let gone = || Err(Failure::NoModel(name.to_owned()));
        self.waiting.retain(|(job, listener)| {
            if job.model == key {
                listener.tell(gone());
            }
            job.model != key
        });
        for ticket in self.batch.tickets_of(key) {
            self.batch.cancel(ticket);
            if let Some(listener) = self.listeners.remove(&ticket) {
                listener.tell(gone());
            }
        }
        self.batch.forget(key);
        self.decoders.remove(&key);
        self.folders.remove(&key);
        Ok(())
    }
}
