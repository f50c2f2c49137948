//! `host` serves language models over the OpenAI API; what differs between models comes from plugins.

pub mod engine;
pub mod exec;
pub mod llm;
pub mod server;
pub mod text;
