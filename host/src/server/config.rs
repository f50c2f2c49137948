//! What an operator can set about the HTTP side. Filled by the command line; read by [`super::serve`].
//! Everything has a default that is safe to expose on a loopback address.

use std::time::Duration;

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
    /// How long a client may take to send its request head, and then its body.
    pub read_timeout: Duration,
    /// Most open connections; further ones wait in the listen queue of the system.
    pub max_connections: usize,
    /// Whether to write one log line a request (`/health` and `/metrics` never get one).
    pub access_log: bool,
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
            read_timeout: Duration::from_secs(60),
            max_connections: 8192,
            access_log: true,
        }
    }
}
