//! `host serve` as its users have it: the real program, the real plugins, requests over loopback.
#![allow(unreachable_pub)] // the modules of a test are not a library

mod answers;
#[path = "../plugins/build.rs"]
mod build;
mod device;
mod http;
mod load;
mod models;
mod overload;
mod plugin;
mod program;
mod stop;
mod stress;
