//! The engine: a handle to the task that owns the GPU.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::worker::{Command, Listener, Shared, Worker};
use crate::messages::Messages;
use crate::tasks::{Task, start};
use aweigh::error::{Error, Result};
use aweigh::model::Decoder;
use aweigh::sample::{Batch, Job, Seating};

pub use super::worker::{Adapted, Failure, Models, Piece, Served, now};

/// The usual room for a prompt and its answer, in tokens, of models with a longer context.
pub const USUAL_CONTEXT: usize = 2048;

/// A handle to the engine's task.
pub struct Engine {
    commands: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    shared: Arc<Shared>,
    task: Mutex<Option<Task<Result<()>>>>,
    seating: Seating,
    /// The size of the model's vocabulary.
    vocab: usize,
}

impl Engine {
    /// Starts the engine. At most `most_waiting` requests wait for a seat.
    ///
    /// # Errors
    /// When the room for answers exceeds the GPU's memory.
    pub fn start(
        models: Models,
        seating: Seating,
        most_waiting: usize,
        messages: Arc<dyn Messages>,
    ) -> Result<Self> {
        let decoders: Vec<&Decoder> =
            [&models.base].into_iter().chain(models.adapters.iter().map(|own| &own.decoder)).collect();
        let batch = Batch::new(&models.gpu, &decoders, seating)?;
        let vocab = models.base.config().vocab;
        let base = Served { name: models.name.clone(), parent: None, created: now() };
        let adapter = |own: &Adapted| Served {
            name: own.name.clone(),
            parent: Some(models.name.clone()),
            created: now(),
        };
        let served = [base].into_iter().chain(models.adapters.iter().map(adapter)).collect();
        let shared = Arc::new(Shared {
            served: Mutex::new(served),
            taken: AtomicUsize::new(0),
            most_taken: seating.seats + most_waiting,
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failure: OnceLock::new(),
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let worker = Worker::new(models, batch, shared.clone(), messages);
        let own = shared.clone();
        let task = start("engine", async move || {
            let ends = Ends(own);
            let ended = worker.run(receiver).await;
            if let Err(error) = &ended {
                let _ = ends.0.failure.set(error.to_string());
            }
            ended
        });
        let (commands, task) = (Mutex::new(Some(sender)), Mutex::new(Some(task?)));
        Ok(Self { commands, shared, task, seating, vocab })
    }

    /// The room for answers.
    pub fn seating(&self) -> Seating {
        self.seating
    }

    /// The size of the model's vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The models that can be asked for; the base model is the first.
    pub fn served(&self) -> Vec<Served> {
        self.shared.served()
    }

    /// Asks for answers: one channel for each of `jobs`. A channel that is dropped ends its job.
    ///
    /// # Errors
    /// [`Failure::Busy`], [`Failure::Ending`].
    pub fn answer(
        &self,
        name: &str,
        jobs: Vec<Job>,
    ) -> std::result::Result<Vec<mpsc::UnboundedReceiver<Piece>>, Failure> {
        let Shared { taken, most_taken, .. } = &*self.shared;
        let more = |now| (now + jobs.len() <= *most_taken).then_some(now + jobs.len());
        if taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_err() {
            return Err(Failure::Busy(*most_taken));
        }
        let ask = |job| {
            let (pieces, receiver) = mpsc::unbounded_channel();
            let listener = Listener { pieces, shared: self.shared.clone() };
            (Command::Answer { name: name.to_owned(), job, listener }, receiver)
        };
        let (commands, receivers): (Vec<_>, Vec<_>) = jobs.into_iter().map(ask).unzip();
        commands.into_iter().try_for_each(|command| self.send(command))?;
        Ok(receivers)
    }

    /// Loads the adapter in `folder`, to be asked for as `name`.
    ///
    /// # Errors
    /// A name that is taken, or an adapter that is missing, damaged or made for another model.
    pub async fn load(&self, name: &str, folder: &Path) -> std::result::Result<(), Failure> {
        let (done, told) = oneshot::channel();
        self.send(Command::Load { name: name.to_owned(), folder: folder.to_owned(), done })?;
        told.await.unwrap_or(Err(Failure::Ending))
    }

    /// Drops an adapter. Requests for it that are being answered are ended.
    ///
    /// # Errors
    /// [`Failure::NoModel`].
    pub async fn unload(&self, name: &str) -> std::result::Result<(), Failure> {
        let (done, told) = oneshot::channel();
        self.send(Command::Unload { name: name.to_owned(), done })?;
        told.await.unwrap_or(Err(Failure::Ending))
    }

    fn send(&self, command: Command) -> std::result::Result<(), Failure> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        if sent { Ok(()) } else { Err(Failure::Ending) }
    }

    /// Ends the engine: what is being answered gets [`Failure::Ending`].
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Why it has ended, if that was an error.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.get().cloned()
    }

    /// Ends the engine, waits until it has, and returns why it had ended before, if that was an error.
    ///
    /// # Errors
    /// A GPU failure.
    pub async fn finish(&self) -> Result<()> {
        self.stop();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return Ok(()) };
        let panicked = || Error::Internal { doing: "answering", message: "the engine panicked".into() };
        task.end().await.unwrap_or_else(|| Err(panicked()))
    }
}

/// Says that the engine has ended, however it ends.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}
