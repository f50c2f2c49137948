//! Where models come from: the settings of [`super::resolve`] and the environment variables behind them.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

/// The hub that is asked when nothing else is set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Settings of [`super::resolve`]. It reads nothing but these, so tests never depend on the environment.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Branch, tag or commit. `None`: `main`.
    pub revision: Option<String>,
    /// The hub cache, shared with Hugging Face's own tools.
    pub cache_dir: PathBuf,
    /// Never use the network.
    pub offline: bool,
    /// A token of the user's account.
    pub token: Option<String>,
    /// Base URL of the hub.
    pub endpoint: String,
    /// Fetch the repository's Python files too, for plugins that read a model's own code. Nothing runs them here.
    pub python_files: bool,
    /// Draw a progress bar on the terminal.
    pub progress: bool,
    /// How long nothing may arrive before a request is given up.
    pub timeout: Duration,
    /// How often a broken transfer is tried again before it is an error.
    pub retries: u32,
    /// Wait before the first of these tries; it doubles with each.
    pub retry_delay: Duration,
}

impl HubOptions {
    /// The settings that Hugging Face's own tools would use: `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_DOWNLOAD_TIMEOUT` and their defaults.
    pub fn from_env() -> Self {
        let home = hf_home();
        Self {
            revision: None,
            cache_dir: variable("HF_HUB_CACHE")
                .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
                .map_or_else(|| home.join("hub"), PathBuf::from),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .iter()
                .any(|name| variable(name).is_some_and(|v| is_true(&v))),
            token: token(&home),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()).trim_end_matches('/').into(),
            python_files: false,
            progress: true,
            timeout: Duration::from_secs(
                variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.parse().ok()).unwrap_or(30).clamp(1, 86_400),
            ),
            retries: 4,
            retry_delay: Duration::from_millis(500),
        }
    }

    /// The revision that is asked for.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn hf_home() -> PathBuf {
    variable("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let home = variable("HOME").or_else(|| variable("USERPROFILE"));
            home.map_or_else(|| PathBuf::from("."), PathBuf::from).join(".cache")
        });
        cache.join("huggingface")
    })
}

fn token(home: &std::path::Path) -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
        return None;
    }
    let stored = || {
        let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        std::fs::read_to_string(path).ok()
    };
    let token = variable("HF_TOKEN").or_else(stored)?.trim().to_owned();
    if token.is_empty() { None } else { Some(token) }
}
