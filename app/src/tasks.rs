//! Work beside the requests: on threads of its own or, in a browser's tab, which has none, as tasks of the
//! tab's event loop.

#[cfg(not(target_arch = "wasm32"))]
use pollster::block_on;
use tokio::sync::oneshot;

use aweigh::error::{Error, Result};

/// Work that was started.
#[derive(Debug)]
pub struct Task<T>(oneshot::Receiver<T>);

impl<T> Task<T> {
    /// Waits until it has ended. `None` if it panicked, which in a tab ends the worker instead.
    pub async fn end(self) -> Option<T> {
        self.0.await.ok()
    }

    /// Whether it has ended. After that, its result is gone.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// Starts `work`; `name` is its thread's.
///
/// # Errors
/// [`Error::Io`] if the system has no thread left.
#[cfg(not(target_arch = "wasm32"))]
pub fn start<T: Send + 'static>(
    name: &'static str,
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> Result<Task<T>> {
    let (done, ended) = oneshot::channel();
    let body = move || {
        // Nobody may wait for it.
        let _ = done.send(block_on(work()));
    };
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    thread.map_err(|error| Error::io(format!("the thread {name:?}"), "start", error))?;
    Ok(Task(ended))
}

/// Starts `work`.
///
/// # Errors
/// None.
#[cfg(target_arch = "wasm32")]
pub fn start<T: 'static>(_: &'static str, work: impl AsyncFnOnce() -> T + 'static) -> Result<Task<T>> {
    let (done, ended) = oneshot::channel();
    wasm_bindgen_futures::spawn_local(async move {
        let _ = done.send(work().await);
    });
    Ok(Task(ended))
}

/// Does `work` for a request, which waits for it: it may block where it has a thread.
///
/// # Errors
/// As `work`; [`Error::Internal`] if it panicked.
#[cfg(not(target_arch = "wasm32"))]
pub async fn apart<T: Send + 'static>(work: impl AsyncFnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(move || block_on(work())).await.unwrap_or_else(|_| Err(panicked()))
}

/// Does `work` for a request, which waits for it.
///
/// # Errors
/// As `work`; [`Error::Internal`] if it panicked.
#[cfg(target_arch = "wasm32")]
pub async fn apart<T: 'static>(work: impl AsyncFnOnce() -> Result<T> + 'static) -> Result<T> {
    start("request", work)?.end().await.unwrap_or_else(|| Err(panicked()))
}

fn panicked() -> Error {
    Error::Internal { doing: "answering the page", message: "a request panicked".into() }
}

/// Does work that never blocks, beside the request that starts it.
pub fn beside(work: impl Future<Output = ()> + Send + 'static) {
    #[cfg(not(target_arch = "wasm32"))]
    drop(tokio::spawn(work));
    #[cfg(target_arch = "wasm32")]
    wasm_bindgen_futures::spawn_local(work);
}
