//! `host serve`: load a model, serve it until told to stop, then drain.

use std::time::Duration;

use anyhow::Context;
use clap::builder::BoolishValueParser;
use tokio::net::TcpListener;
use tokio::signal;

use super::args::{ModelArgs, size};
use crate::llm::Llm;
use crate::server::{self, ServerConfig};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Server")]
struct ServerArgs {
    /// Address to listen on
    #[arg(long, env = "HOST_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// Port to listen on; 0: any free one
    #[arg(long, env = "HOST_PORT", default_value_t = 8000)]
    port: u16,
    /// Key that clients must send as bearer token; may be repeated [default: none needed]
    #[arg(long, env = "HOST_API_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    api_key: Vec<String>,
    /// Largest request body
    #[arg(long, env = "HOST_MAX_BODY_SIZE", default_value = "8MiB", value_name = "SIZE", value_parser = size)]
    max_body_size: u64,
    /// The most completions (prompts times n) of one request
    #[arg(long, env = "HOST_MAX_CHOICES", default_value_t = 4096, value_name = "N")]
    max_choices: usize,
    /// Let requests bring their own chat_template
    #[arg(long, env = "HOST_TRUST_REQUEST_CHAT_TEMPLATE", value_parser = BoolishValueParser::new())]
    trust_request_chat_template: bool,
    /// Seconds that running requests may take after SIGTERM or Ctrl-C
    #[arg(long, env = "HOST_SHUTDOWN_TIMEOUT", default_value_t = 30, value_name = "SECONDS")]
    shutdown_timeout: u64,
    /// Seconds that a client may take to send a request
    #[arg(long, env = "HOST_READ_TIMEOUT", default_value_t = 60, value_name = "SECONDS")]
    read_timeout: u64,
    /// Seconds of silence after which a stream gets a comment, so that proxies keep it open
    #[arg(long, env = "HOST_SSE_KEEP_ALIVE", default_value_t = 15, value_name = "SECONDS")]
    sse_keep_alive: u64,
    /// The most open connections
    #[arg(long, env = "HOST_MAX_CONNECTIONS", default_value_t = 8192, value_name = "N")]
    max_connections: usize,
    /// Do not log requests
    #[arg(long, env = "HOST_DISABLE_ACCESS_LOG", value_parser = BoolishValueParser::new())]
    disable_access_log: bool,
}

impl Args {
    pub(super) fn server_config(&self) -> ServerConfig {
        let s = &self.server;
        ServerConfig {
            api_keys: s.api_key.clone(),
            max_body_size: usize::try_from(s.max_body_size).unwrap_or(usize::MAX),
            max_choices: s.max_choices,
            trust_request_chat_template: s.trust_request_chat_template,
            shutdown_timeout: Duration::from_secs(s.shutdown_timeout),
            keep_alive: Duration::from_secs(s.sse_keep_alive),
            read_timeout: Duration::from_secs(s.read_timeout),
            max_connections: s.max_connections,
            access_log: !s.disable_access_log,
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    super::start_log(&args.model.log, "info")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let config = args.server_config();
    let (host, port) = (args.server.host.as_str(), args.server.port);
    // Before the model is loaded: a port that is taken should not cost minutes.
    let listener = TcpListener::bind((host, port))
        .await
        .with_context(|| format!("cannot listen on {host}:{port} (--host, --port)"))?;
    let address = listener.local_addr()?;
    let mut stop = std::pin::pin!(stop_signal()?);
    let options = args.model.options()?;
    let loading = tokio::task::spawn_blocking(move || Llm::load(&options));
    let llm = tokio::select! {
        llm = loading => llm.context("loading the model panicked")??,
        // The thread that loads ends with the process.
        () = &mut stop => { tracing::info!("stopped while loading"); std::process::exit(0) }
    };
    if !address.ip().is_loopback() && config.api_keys.is_empty() {
        tracing::warn!("listening on {address} without --api-key: whoever reaches this address can use the model");
    }
    tracing::info!("serving {} on http://{address}/v1", llm.info().served_names.join(", "));
    let engine = llm.engine().clone();
    let result = server::serve(listener, llm, config, stop).await;
    engine.shutdown();
    let stopped = tokio::task::spawn_blocking(move || engine.wait_stopped(Duration::from_secs(10)));
    if !stopped.await.unwrap_or(false) {
        tracing::warn!("the engine is still in a step; leaving all the same");
    }
    tracing::info!("stopped");
    Ok(result?)
}

/// Resolves at the first SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())?;
    let mut next = async move || {
        #[cfg(unix)]
        tokio::select! {
            _ = signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = signal::ctrl_c().await;
    };
    Ok(async move {
        next().await;
        tracing::info!("stopping: running requests may finish; once more to stop at once");
        tokio::spawn(async move {
            next().await;
            std::process::exit(130);
        });
    })
}
