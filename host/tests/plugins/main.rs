//! Plugins against the real program as their worker: good ones, and every kind of bad one.
#![allow(unreachable_pub)] // the modules of a test are not a library

#[path = "bad.rs"]
mod bad_plugins;
mod build;
mod commands;
mod sandbox;
mod selection;
mod sources;
mod support;
