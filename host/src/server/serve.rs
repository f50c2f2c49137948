//! The server's life: accept connections, serve them, and on the caller's signal drain. Every connection is one
//! task; ending the task drops what it was generating, which frees its KV blocks. It knows nothing of routes.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::config::ServerConfig;
use super::cors::CorsError;
use super::listen::{Listener, Socket};
use super::stall::Stall;
use super::state::{AppState, Phase};
use crate::llm::Llm;

/// How long streams that are cut off at the end of the drain get to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the server could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The listening socket is no longer usable.
    #[error("cannot accept connections any more: {0}")]
    Accept(io::Error),
    /// The settings.
    #[error(transparent)]
    Cors(#[from] CorsError),
}

/// Serves the API on `listener` until `shutdown` resolves. Then no connection is accepted any more; requests that
/// run may finish within [`ServerConfig::shutdown_timeout`]; what is left is ended with an error. The engine itself
/// is the caller's to stop.
pub async fn serve(
    listener: impl Listener,
    llm: Llm,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let state = AppState::new(llm, config);
    let app = super::router(state.clone())?;
    let permits = Arc::new(Semaphore::new(state.config.max_connections.max(1)));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let result = loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &permits) => match accepted {
                Ok((socket, permit)) => {
                    connections.spawn(connection(socket, permit, app.clone(), state.clone(), graceful.watcher()));
                }
                Err(error) => break Err(ServerError::Accept(error)),
            },
        }
    };
    drop(listener);
    state.phase.send_replace(Phase::Draining);
    let patience = state.config.shutdown_timeout;
    tracing::info!(
        connections = connections.len(),
        timeout_s = patience.as_secs(),
        "shutting down: finishing what runs"
    );
    if tokio::time::timeout(patience, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "shutdown timeout: ending the requests that still run");
        state.phase.send_replace(Phase::Aborting);
        let rest = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, rest).await;
    }
    connections.shutdown().await;
    if let Some(traces) = state.config.traces.clone() {
        traces.stop().await;
    }
    result
}

/// The next connection. Errors that concern one connection, or that pass, are waited out.
async fn accept<L: Listener>(listener: &L, permits: &Arc<Semaphore>) -> io::Result<(L::Socket, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match listener.next().await {
            Ok(socket) => return Ok((socket, permit)),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused => {}
                io::ErrorKind::InvalidInput => return Err(error),
                _ => {
                    // Out of file descriptors or memory: others will give some back.
                    tracing::error!(%error, "cannot accept a connection; trying again in 1 s");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
}

/// Serves one connection to its end.
async fn connection(
    socket: impl Socket,
    _permit: OwnedSemaphorePermit,
    app: Router,
    state: Arc<AppState>,
    watcher: Watcher,
) {
    let patience = state.config.read_timeout;
    let mut phase = state.phase.subscribe();
    // A client that connects and asks nothing must hold up neither the drain nor a connection slot.
    tokio::select! {
        ready = tokio::time::timeout(patience, socket.wait_readable()) => match ready {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        },
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
    }
    let Some(tls) = &state.config.tls else {
        return answer(socket, app, &state, watcher).await;
    };
    // No handshake is worth holding up the drain.
    let handshake = TlsAcceptor::from(tls.clone()).accept(socket);
    let stream = tokio::select! {
        stream = tokio::time::timeout(patience, handshake) => stream,
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
    };
    match stream {
        Ok(Ok(stream)) => answer(stream, app, &state, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Answers the requests of one connection.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    app: Router,
    state: &AppState,
    watcher: Watcher,
) {
    let patience = state.config.read_timeout;
    let stream = Stall::new(stream, state.config.write_timeout);
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%error, "a connection ended early");
    }
}
