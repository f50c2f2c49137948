//! The command line: flags to options, commands to calls of the library. It decides nothing about models.
//!
//! One file a command; `args` holds what commands share. Called by `main` only.

mod args;
mod generate;
mod inspect;
mod plugins;
mod serve;

use std::ffi::OsString;
use std::io::IsTerminal;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config;

pub use args::ModelArgs;

/// Serves language models over the OpenAI API. The model architecture is a plugin.
#[derive(Parser, Debug)]
#[command(name = "host", version, propagate_version = true, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Flags win over HOST_* environment variables, these over host.toml, that over the defaults shown."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve a model over HTTP; without MODEL a small built-in chat model
    Serve(Box<serve::Args>),
    /// Generate text for one or more prompts, and exit
    Generate(Box<generate::Args>),
    /// Show a model's plugin, size, graph and plan without running it
    Inspect(Box<inspect::Args>),
    /// List, check and create architecture plugins
    Plugins(plugins::Args),
}

/// Parses the command line and runs the command.
pub fn run() -> anyhow::Result<()> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut command = Cli::command();
    if let Some(path) = config::find(config::named_file(&args)) {
        command = config::apply(command, &path).context("cannot use the configuration file")?;
    }
    let matches = command.get_matches_from(args);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Generate(args) => generate::run(*args),
        Command::Inspect(args) => inspect::run(*args),
        Command::Plugins(args) => plugins::run(args),
    }
}

/// Sends the log to stderr, so that output can be piped.
fn start_log(args: &args::LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("--log-level {}: expected error, warn, info, debug or trace", args.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        args::LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        args::LogFormat::Json => log.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_flag_names_the_nearest() {
        let error = Cli::try_parse_from(["host", "serve", "--max-model-length", "7"]).expect_err("is refused");
        assert!(error.to_string().contains("--max-model-len"), "{error}");
    }

    #[test]
    fn defaults_are_those_of_the_library() {
        let cli = Cli::try_parse_from(["host", "serve"]).expect("parses");
        let Command::Serve(args) = cli.command else { panic!("another command") };
        let (options, defaults) = (args.model.options().expect("options"), crate::llm::LlmOptions::default());
        assert_eq!(format!("{options:?}"), format!("{defaults:?}"));
        assert_eq!(format!("{:?}", args.server_config()), format!("{:?}", crate::server::ServerConfig::default()));
    }
}
