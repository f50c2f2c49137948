//! What an operator can set about the HTTP side. Filled by the command line; read by [`super::serve`].
//! Everything has a default that is safe to expose on a loopback address.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::cors::CorsConfig;
use super::parsers::{ReasoningFormat, ToolFormat};
use super::traces::Traces;

/// A format of the model's text: given, or found in the chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FormatChoice<T> {
    /// What the chat template describes, if it describes one.
    #[default]
    Auto,
    /// None: text is text.
    Off,
    /// This one.
    Is(T),
}

impl<T: FromStr<Err = String>> FromStr for FormatChoice<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::Off),
            name => name.parse().map(Self::Is).map_err(|error| format!("{error}, or auto, or none")),
        }
    }
}

/// Settings of the HTTP server. What concerns the model lives in `LlmOptions`.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Keys that open the API (`Authorization: Bearer KEY`). Empty: no key is needed.
    pub api_keys: Vec<String>,
    /// Largest request body in bytes; more is refused with 413.
    pub max_body_size: usize,
    /// Most prompts × `n` that one request may ask for.
    pub max_choices: usize,
    /// Whether a request may bring its own `chat_template`.
    pub trust_request_chat_template: bool,
    /// How long requests that run when the server is told to stop may go on.
    pub shutdown_timeout: Duration,
    /// A stream that is silent for this long gets a comment line, so that proxies keep it open.
    pub keep_alive: Duration,
    /// How long an answer waits for a client that takes nothing of it.
    pub write_timeout: Duration,
    /// How long a client may take to send its request head, and then its body.
    pub read_timeout: Duration,
    /// Most open connections; further ones wait in the listen queue of the system.
    pub max_connections: usize,
    /// How the model writes tool calls.
    pub tool_call_parser: FormatChoice<ToolFormat>,
    /// How the model marks its reasoning.
    pub reasoning_parser: FormatChoice<ReasoningFormat>,
    /// Whether to write one log line a request (probes and scrapes never get one).
    pub access_log: bool,
    /// Further paths that get no line.
    pub unlogged: Vec<String>,
    /// A step of the engine that takes longer is taken for a hang by `/health`.
    pub hang_timeout: Duration,
    /// Which other origins' pages may use the API.
    pub cors: CorsConfig,
    /// TLS; `None`: plain HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// What chat templates get unless a request says otherwise.
    pub chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Where spans of requests go; `None`: nowhere.
    pub traces: Option<Traces>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            max_body_size: 8 << 20,
            max_choices: 4096,
            trust_request_chat_template: false,
            shutdown_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            write_timeout: Duration::from_secs(300),
            read_timeout: Duration::from_secs(60),
            max_connections: 8192,
            tool_call_parser: FormatChoice::Auto,
            reasoning_parser: FormatChoice::Auto,
            access_log: true,
            unlogged: Vec::new(),
            hang_timeout: Duration::from_secs(120),
            cors: CorsConfig::default(),
            tls: None,
            chat_template_kwargs: serde_json::Map::new(),
            traces: None,
        }
    }
}
