//! `host` serves language models over the OpenAI API; what differs between models comes from plugins.

pub mod registry;
