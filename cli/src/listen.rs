//! Serves routes at an address, until Ctrl-C: for `aweigh serve` and `aweigh app`.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use crate::terminal::interrupt;
use aweigh::error::{Error, Result};

/// How long connections may stay open after the engine has ended, so that their clients can read the rest.
const GRACE: Duration = Duration::from_secs(3);

/// Serves `routes` at `listener` until Ctrl-C or until `ended`; then `stop` is awaited, and requests that are
/// being answered get a few seconds to finish.
///
/// # Errors
/// [`Error::Io`] of the socket.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    ended: impl Fn() -> bool + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        while !interrupt::asked() && !ended() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.await;
        let _ = stopping.send(());
    };
    let served = axum::serve(listener, routes.into_make_service()).with_graceful_shutdown(stop);
    // A client that reads nothing must not keep the server.
    let grace = async move {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = served.into_future() => {
            served.map_err(|error| Error::io("the server's socket", "serve", error))
        }
        () = grace => Ok(()),
    }
}

/// The threads that a server's requests are answered on.
///
/// # Errors
/// [`Error::Io`] if the system has none left.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.map_err(|error| Error::io("the server's threads", "start", error))
}

/// Listens at `address`.
///
/// # Errors
/// [`Error::Input`] if the address cannot be used: another program has it, or it is not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let fix = "stop the program that uses it, or give another --port";
        Error::input("--port", format!("a free port at {}", address.ip()), format!("{address}: {error}"), fix)
    })
}
