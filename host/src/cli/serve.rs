//! `host serve`: load a model, serve it until told to stop, then drain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::builder::BoolishValueParser;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal;

use super::args::{ModelArgs, size};
use super::foreign::AlwaysArgs;
use crate::llm::{Llm, LlmOptions};
use crate::registry::sandbox_support;
#[cfg(unix)]
use crate::server::UnixSocket;
use crate::server::{
    self, CorsConfig, FormatChoice, Listener, ReasoningFormat, ServerConfig, TlsFiles, ToolFormat, Traces,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    always: AlwaysArgs,
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
    /// Listen on a Unix domain socket at this path; --host and --port have no part in it then
    #[cfg(unix)]
    #[arg(long, env = "HOST_UDS", value_name = "PATH")]
    uds: Option<PathBuf>,
    /// Key that clients must send as bearer token; may be repeated [default: none needed]
    #[arg(long, env = "HOST_API_KEY", value_name = "KEY", num_args = 1.., value_delimiter = ',', hide_env_values = true)]
    api_key: Vec<String>,
    /// File with further keys, one a line; lines that begin with # are skipped
    #[arg(long, env = "HOST_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Serve HTTPS with this certificate (PEM, with what lies between it and its authority)
    #[arg(long, env = "HOST_SSL_CERTFILE", value_name = "FILE")]
    ssl_certfile: Option<PathBuf>,
    /// The certificate's private key (PEM) [default: in the certificate's file]
    #[arg(long, env = "HOST_SSL_KEYFILE", value_name = "FILE", requires = "ssl_certfile")]
    ssl_keyfile: Option<PathBuf>,
    /// Authorities (PEM) that clients' certificates must come from
    #[arg(long, env = "HOST_SSL_CA_CERTS", value_name = "FILE", requires = "ssl_certfile")]
    ssl_ca_certs: Option<PathBuf>,
    /// Clients' certificates: 0 none, 1 optional, 2 required (needs --ssl-ca-certs)
    #[arg(long, env = "HOST_SSL_CERT_REQS", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    ssl_cert_reqs: u8,
    /// Origins whose web pages may use the API from a browser, such as https://example.org, or * [default: none]
    #[arg(long, env = "HOST_ALLOWED_ORIGINS", value_name = "ORIGINS", num_args = 1..)]
    allowed_origins: Vec<String>,
    /// Methods that they may use
    #[arg(long, env = "HOST_ALLOWED_METHODS", value_name = "METHODS", num_args = 1.., default_value = "*")]
    allowed_methods: Vec<String>,
    /// Request headers that they may send
    #[arg(long, env = "HOST_ALLOWED_HEADERS", value_name = "HEADERS", num_args = 1.., default_value = "*")]
    allowed_headers: Vec<String>,
    /// Let their requests carry cookies and the like
    #[arg(long, env = "HOST_ALLOW_CREDENTIALS", value_parser = BoolishValueParser::new())]
    allow_credentials: bool,
    /// Largest request body
    #[arg(long, env = "HOST_MAX_BODY_SIZE", default_value = "8MiB", value_name = "SIZE", value_parser = size)]
    max_body_size: u64,
    /// The most completions (prompts times n) of one request
    #[arg(long, env = "HOST_MAX_CHOICES", default_value_t = 4096, value_name = "N")]
    max_choices: usize,
    /// What seeds of requests that bring none are made from [default: the system's random numbers]
    #[arg(long, env = "HOST_SEED", value_name = "N")]
    seed: Option<u64>,
    /// Let requests bring their own chat_template
    #[arg(long, env = "HOST_TRUST_REQUEST_CHAT_TEMPLATE", value_parser = BoolishValueParser::new())]
    trust_request_chat_template: bool,
    /// What chat templates get unless a request says otherwise, such as {"enable_thinking": false} [default: nothing]
    #[arg(long, env = "HOST_DEFAULT_CHAT_TEMPLATE_KWARGS", value_name = "JSON", value_parser = kwargs)]
    default_chat_template_kwargs: Option<Map<String, Value>>,
    /// Seconds that running requests may take after SIGTERM or Ctrl-C
    #[arg(long, env = "HOST_SHUTDOWN_TIMEOUT", default_value_t = 30, value_name = "SECONDS")]
    shutdown_timeout: u64,
    /// Seconds that a client may take to send a request
    #[arg(long, env = "HOST_READ_TIMEOUT", default_value_t = 60, value_name = "SECONDS")]
    read_timeout: u64,
    /// Seconds that an answer waits for a client that does not read it
    #[arg(long, env = "HOST_WRITE_TIMEOUT", default_value_t = 300, value_name = "SECONDS")]
    write_timeout: u64,
    /// Seconds after which one step of the engine is taken for a hang by /health
    #[arg(long, env = "HOST_HANG_TIMEOUT", default_value_t = 120, value_name = "SECONDS")]
    hang_timeout: u64,
    /// Seconds of silence after which a stream gets a comment, so that proxies keep it open
    #[arg(
        long,
        env = "HOST_SSE_KEEP_ALIVE",
        alias = "sse-keep-alive-interval",
        default_value_t = 15,
        value_name = "SECONDS"
    )]
    sse_keep_alive: u64,
    /// The most open connections
    #[arg(long, env = "HOST_MAX_CONNECTIONS", default_value_t = 8192, value_name = "N")]
    max_connections: usize,
    /// How the model writes tool calls: auto (from the chat template), none, hermes, llama3_json, mistral, qwen3_xml,
    /// deepseek_v3, glm4, pythonic or gpt_oss
    #[arg(long, env = "HOST_TOOL_CALL_PARSER", default_value = "auto", value_name = "FORMAT")]
    tool_call_parser: FormatChoice<ToolFormat>,
    /// How the model marks its reasoning: auto (from the chat template), none, deepseek_r1, qwen3, seed_oss, mistral, gpt_oss, or
    /// tags:START,END for any other pair of tags
    #[arg(long, env = "HOST_REASONING_PARSER", default_value = "auto", value_name = "FORMAT")]
    reasoning_parser: FormatChoice<ReasoningFormat>,
    /// Send a trace of each request to this collector (OTLP over HTTP), such as http://localhost:4318/v1/traces [default: what
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT say; else none]
    #[arg(long, env = "HOST_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    otlp_traces_endpoint: Option<String>,
    /// Do not log requests
    #[arg(long, env = "HOST_DISABLE_ACCESS_LOG", alias = "disable-uvicorn-access-log", value_parser = BoolishValueParser::new())]
    disable_access_log: bool,
    /// Further paths without lines in the log
    #[arg(long, env = "HOST_DISABLE_ACCESS_LOG_FOR_ENDPOINTS", value_name = "PATHS", value_delimiter = ',')]
    disable_access_log_for_endpoints: Vec<String>,
}

impl Args {
    pub(super) fn server_config(&self) -> anyhow::Result<ServerConfig> {
        let s = &self.server;
        let cors = CorsConfig {
            origins: list("--allowed-origins", &s.allowed_origins)?,
            methods: list("--allowed-methods", &s.allowed_methods)?,
            headers: list("--allowed-headers", &s.allowed_headers)?,
            credentials: s.allow_credentials,
        };
        cors.check()?;
        Ok(ServerConfig {
            api_keys: s.keys()?,
            max_body_size: usize::try_from(s.max_body_size).unwrap_or(usize::MAX),
            max_choices: s.max_choices,
            trust_request_chat_template: s.trust_request_chat_template,
            shutdown_timeout: Duration::from_secs(s.shutdown_timeout),
            keep_alive: Duration::from_secs(s.sse_keep_alive),
            read_timeout: Duration::from_secs(s.read_timeout),
            max_connections: s.max_connections,
            access_log: !s.disable_access_log,
            tool_call_parser: s.tool_call_parser.clone(),
            reasoning_parser: s.reasoning_parser.clone(),
            unlogged: s.disable_access_log_for_endpoints.clone(),
            write_timeout: Duration::from_secs(s.write_timeout),
            hang_timeout: Duration::from_secs(s.hang_timeout),
            cors,
            tls: s.tls()?,
            traces: s.traces()?,
            chat_template_kwargs: s.default_chat_template_kwargs.clone().unwrap_or_default(),
        })
    }
}

impl ServerArgs {
    /// All keys. None at all means an open server, so an empty one is a mistake, not a key less.
    fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        // What scripts for vLLM set.
        if keys.is_empty()
            && let Ok(key) = std::env::var("VLLM_API_KEY")
        {
            keys.push(key);
        }
        if let Some(path) = &self.api_key_file {
            let shown = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("--api-key-file {shown}"))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(str::to_owned));
            anyhow::ensure!(keys.len() > before, "--api-key-file {shown}: it has no key; write one a line");
        }
        anyhow::ensure!(
            keys.iter().all(|key| !key.trim().is_empty()),
            "--api-key: a key is empty; leave the flag out to need none"
        );
        Ok(keys)
    }

    /// Where traces go: the flag, or what OpenTelemetry's own variables say.
    fn traces(&self) -> anyhow::Result<Option<Traces>> {
        if let Some(endpoint) = &self.otlp_traces_endpoint {
            return Ok(Some(Traces::start(endpoint).context("--otlp-traces-endpoint")?));
        }
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if !cfg!(feature = "otlp") || variable("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"))
        {
            return Ok(None);
        }
        let (name, endpoint) =
            match (variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), variable("OTEL_EXPORTER_OTLP_ENDPOINT")) {
                (Some(endpoint), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint),
                (None, Some(base)) => {
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{}/v1/traces", base.trim_end_matches('/')))
                }
                (None, None) => return Ok(None),
            };
        Ok(Some(Traces::start(&endpoint).context(name)?))
    }

    fn tls(&self) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
        let Some(certificate) = self.ssl_certfile.clone() else {
            return Ok(None);
        };
        match (self.ssl_cert_reqs, &self.ssl_ca_certs) {
            (1 | 2, None) => bail!("--ssl-cert-reqs {} needs --ssl-ca-certs", self.ssl_cert_reqs),
            (0, Some(_)) => bail!("--ssl-ca-certs has no effect without --ssl-cert-reqs 1 or 2"),
            _ => {}
        }
        let files = TlsFiles {
            certificate,
            key: self.ssl_keyfile.clone(),
            client_authorities: self.ssl_ca_certs.clone(),
            client_optional: self.ssl_cert_reqs == 1,
        };
        Ok(Some(files.load()?))
    }
}

fn kwargs(text: &str) -> Result<Map<String, Value>, String> {
    let kwargs: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| format!("expected a JSON object such as {{\"enable_thinking\": false}}: {error}"))?;
    match server::RESERVED_KWARGS.iter().find(|name| kwargs.contains_key(**name)) {
        Some(name) => Err(format!("{name} is set by the server")),
        None => Ok(kwargs),
    }
}

/// Values as vLLM takes them, a JSON list, or as words.
fn list(flag: &str, given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut values = Vec::new();
    for text in given {
        if text.trim_start().starts_with('[') {
            let items: Vec<String> = serde_json::from_str(text)
                .with_context(|| format!("{flag} {text}: expected a JSON list of strings"))?;
            values.extend(items);
        } else {
            values.extend(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned));
        }
    }
    Ok(values)
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    super::start_log(&args.model.log, "info")?;
    raise_file_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = args.server_config()?;
    // Before the model is loaded: a port that is taken should not cost minutes.
    #[cfg(unix)]
    if let Some(path) = args.server.uds.clone() {
        let shown = path.display();
        let socket = UnixSocket::bind(&path).with_context(|| format!("cannot listen on {shown} (--uds)"))?;
        let place = Place { shown: format!("unix:{shown}"), private: true };
        return serve_on(socket, place, args, config, started).await;
    }
    let (host, port) = (args.server.host.as_str(), args.server.port);
    let listener =
        listen(host, port).await.with_context(|| format!("cannot listen on {host}:{port} (--host, --port)"))?;
    let address = listener.local_addr()?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let place = Place { shown: format!("{scheme}://{address}/v1"), private: address.ip().is_loopback() };
    serve_on(listener, place, args, config, started).await
}

/// Where a server listens.
struct Place {
    shown: String,
    /// Only this machine reaches it.
    private: bool,
}

async fn serve_on(
    listener: impl Listener,
    place: Place,
    args: Args,
    config: ServerConfig,
    started: Instant,
) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop_signal()?);
    let options = LlmOptions { seed: args.server.seed, ..args.model.options()? };
    for hole in sandbox_support().missing() {
        tracing::warn!("{hole}; see `host doctor`");
    }
    let loading = tokio::task::spawn_blocking(move || Llm::load(&options));
    let llm = tokio::select! {
        llm = loading => llm.context("loading the model panicked")??,
        // The thread that loads ends with the process.
        () = &mut stop => { tracing::info!("stopped while loading"); std::process::exit(0) }
    };
    let shown = place.shown;
    if !place.private && config.api_keys.is_empty() {
        tracing::warn!("listening on {shown} without --api-key: whoever reaches this address can use the model");
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(seconds, "ready");
    tracing::info!("serving {} on {shown}", llm.info().served_names.join(", "));
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

/// Listens, with room for many clients that come at once.
async fn listen(host: &str, port: u16) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 8192; // The system may allow less.
    let mut failure = None;
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let bound = socket.and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// A connection is an open file, and shells often allow 1024 of them where the system would allow many more.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some() && limit.current != limit.maximum {
            limit.current = limit.maximum;
            if let Err(error) = setrlimit(Resource::Nofile, limit) {
                tracing::debug!(%error, "cannot raise the limit of open files");
            }
        }
    }
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
