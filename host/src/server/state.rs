//! What all handlers share, and the phases of the server's life. Made by [`super::serve`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::config::ServerConfig;
use super::metrics::Metrics;
use super::middleware::Keys;
use crate::llm::Llm;

/// Where the server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Taking requests.
    Serving,
    /// Told to stop: what runs may finish, nothing new begins.
    Draining,
    /// Out of patience: what still runs is ended with an error.
    Aborting,
}

/// How many requests are being answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Load {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(&self) -> LoadGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        LoadGuard(self.0.clone())
    }

    /// Now.
    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request that is being answered.
#[derive(Debug)]
pub(crate) struct LoadGuard(Arc<AtomicUsize>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shared by all handlers.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) llm: Llm,
    pub(crate) config: ServerConfig,
    pub(crate) keys: Keys,
    pub(crate) metrics: Metrics,
    pub(crate) load: Load,
    pub(crate) phase: watch::Sender<Phase>,
}

impl AppState {
    pub(crate) fn new(llm: Llm, config: ServerConfig) -> Arc<Self> {
        let keys = Keys::new(&config.api_keys);
        let metrics = Metrics::new(&llm);
        Arc::new(Self { llm, config, keys, metrics, load: Load::default(), phase: watch::Sender::new(Phase::Serving) })
    }

    /// Now.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when running requests must end.
    pub(crate) fn aborted(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.subscribe();
        async move {
            // An error means that the state is gone, and the server with it.
            let _ = phase.wait_for(|phase| *phase == Phase::Aborting).await;
        }
    }
}
