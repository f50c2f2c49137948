//! Finds a model's files, downloads them if need be, and opens its weights.
//!
//! [`resolve`] turns what the user wrote (a folder or a repository id) into a folder that holds `config.json`, the
//! tokenizer and safetensors files; [`Weights`] maps the safetensors files after every header was checked. Nothing here
//! interprets a configuration, runs a model's Python files or reads pickled weights, and nothing is written outside the
//! hub cache. The callers are `llm`, which loads models, and the command line.

#[cfg(feature = "hub")]
mod download;
mod error;
mod gguf;
mod header;
#[cfg(feature = "hub")]
mod listing;
mod options;
mod packed;
#[cfg(feature = "hub")]
mod partial;
mod resolve;
mod weights;

#[cfg(all(test, feature = "hub"))]
mod download_tests;
#[cfg(all(test, feature = "hub"))]
mod test_server;

#[cfg(feature = "hub")]
pub(crate) use download::{progress_bar, with_causes};
pub use error::HubError;
pub use gguf::{GgufFile, GgufMetadata, GgufPlace, GgufValue};
pub use header::Dtype;
pub use options::{DEFAULT_ENDPOINT, HubOptions};
pub use packed::{PackedFormat, PackedView};
pub(crate) use packed::{e4m3, e5m2};
pub use resolve::{ModelFiles, resolve};
pub use weights::{WeightView, Weights};
