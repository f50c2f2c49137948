//! `host` serves language models over the OpenAI API; what differs between models comes from plugins.
//!
//! One folder a responsibility; imports run one way: `server` → `llm` → `engine` → `exec` → kernels.
//! `graph` knows no engine; nothing knows the server. As a library it begins with [`Llm`]; [`llm`] has an example.

pub mod cli;
pub mod client;
pub mod config;
pub mod engine;
pub mod exec;
pub mod graph;
pub mod hub;
pub mod llm;
pub mod registry;
pub mod server;
#[cfg(test)]
mod test_pages;
pub mod text;
pub mod transformers;

pub use llm::{Llm, LlmOptions, SamplingParams};
