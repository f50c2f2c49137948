//! Everything that can go wrong between a model's name and its weights. Each message says what to do next.

use std::path::{Path, PathBuf};

/// Why a model could not be found, downloaded or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The path that the user gave is not a model folder.
    #[error(
        "model \"{model}\": {reason}; give a folder with config.json and *.safetensors, or a repository id such as org/name"
    )]
    NotAModel {
        /// What the user wrote.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file of the model is not what it must be.
    #[error("{}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// Neither the cache nor (being offline) anything else has the model.
    #[error(
        "model \"{repo}\" (revision {revision}) is not in the cache {}: {reason}; {advice}",
        cache.display()
    )]
    NotCached {
        /// The repository id.
        repo: String,
        /// The branch, tag or commit that was asked for.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
        /// What is missing.
        reason: String,
        /// How to get it.
        advice: String,
    },
    /// The hub answered 401.
    #[error(
        "{endpoint} refuses \"{repo}\" (HTTP 401): the repository does not exist, or it is private or gated; check the name, \
         accept the conditions on {endpoint}/{repo} if there are any, and set HF_TOKEN to a token that may read it{detail}"
    )]
    Unauthorized {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// What the hub said, if anything.
        detail: String,
    },
    /// The hub answered 403.
    #[error(
        "{endpoint} forbids access to \"{repo}\" (HTTP 403): accept the model's conditions on {endpoint}/{repo} with your \
         account, and set HF_TOKEN to a token of that account that may read gated repositories{detail}"
    )]
    Forbidden {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// What the hub said, if anything.
        detail: String,
    },
    /// The hub answered 404.
    #[error(
        "{endpoint} has no model \"{repo}\" with revision \"{revision}\"{detail}; check both (--revision takes a branch, tag \
         or commit); a local model is a path to a folder with config.json, such as ./{repo}"
    )]
    NotFound {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// The branch, tag or commit that was asked for.
        revision: String,
        /// What exactly is missing, if the hub said so.
        detail: String,
    },
    /// The repository has no weights that can be read.
    #[error(
        "model \"{repo}\" has no safetensors weights ({found}); only safetensors files are read, never .bin or .gguf"
    )]
    NoWeights {
        /// The repository id.
        repo: String,
        /// What it has instead.
        found: String,
    },
    /// The hub could not be reached, or failed.
    #[error(
        "{endpoint}: {what} of \"{repo}\" failed: {message}; check the network and HF_ENDPOINT, then run the same command again"
    )]
    Transfer {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// What was going on.
        what: String,
        /// What happened.
        message: String,
    },
    /// Nothing arrived for too long.
    #[error(
        "{endpoint}: {what} of \"{repo}\": nothing arrived for {seconds} s; run the same command again to go on where it \
         stopped, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    )]
    Timeout {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// What was going on.
        what: String,
        /// How long it waited.
        seconds: u64,
    },
    /// What arrived is not what the hub announced.
    #[error("\"{repo}\": {file} arrived damaged: {message}; the file was discarded, run the same command again")]
    Damaged {
        /// The repository id.
        repo: String,
        /// The file's name in the repository.
        file: String,
        /// Both checksums or sizes.
        message: String,
    },
    /// The hub named a file or a commit in a way that cannot be trusted as a path.
    #[error("{endpoint}: unusable answer for \"{repo}\": {message}")]
    BadAnswer {
        /// The hub.
        endpoint: String,
        /// The repository id.
        repo: String,
        /// What is wrong.
        message: String,
    },
    /// A safetensors file as a whole is wrong.
    #[error("{}: {message}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// One tensor of a safetensors file is wrong.
    #[error("{}: tensor \"{tensor}\": {message}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The checkpoint does not hold the weights that the architecture expects.
    #[error("the checkpoint does not fit the architecture: {0}")]
    Mismatch(String),
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
        let path = path.to_path_buf();
        move |source| HubError::Io { path, source }
    }

    /// The hub was not reached or is out of order: what is cached may be used instead.
    pub fn is_outage(&self) -> bool {
        matches!(self, HubError::Transfer { .. } | HubError::Timeout { .. })
    }
}
