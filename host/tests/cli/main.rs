//! The commands of the real program: what they print, what they refuse, and with which words.
#![allow(unreachable_pub)] // the modules of a test are not a library

mod broken;
#[path = "../plugins/build.rs"]
mod build;
mod commands;
mod devices;
#[path = "../serve/http.rs"]
mod http;
#[path = "../serve/models.rs"]
mod models;
mod package;
#[path = "../serve/program.rs"]
mod program;
mod settings;
mod tools;
