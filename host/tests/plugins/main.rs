//! Plugins against the real program as their worker: good ones, and every kind of bad one.

#[path = "bad.rs"]
mod bad_plugins;
mod commands;
mod selection;
mod support;
