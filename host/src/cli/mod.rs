//! The command line: flags to options, commands to calls of the library. It decides nothing about models.
//!
//! One file a command; `args` holds what commands share. Called by `main` only.

mod args;
mod batch;
mod bench;
mod chat;
mod doctor;
mod foreign;
mod generate;
mod inspect;
mod plugins;
mod serve;
mod shell;

use std::ffi::OsString;
use std::io::IsTerminal;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{self, ConfigError};

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
    /// Talk to a running server, in the terminal
    Chat(chat::Args),
    /// Measure the engine, or any server with the OpenAI API
    Bench(bench::Args),
    /// Answer a file of requests in the form of OpenAI's batch API
    RunBatch(Box<batch::Args>),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write all pages into a folder
    Man(shell::ManArgs),
    /// List, check and create architecture plugins
    Plugins(plugins::Args),
    /// Show what this machine has for host, and what to fix
    Doctor(doctor::Args),
}

/// Parses the command line and runs the command.
pub fn run() -> anyhow::Result<()> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|command| command == "serve") {
        args = foreign::spelt_out(args.into_iter());
    }
    let mut command = Cli::command();
    let file = config::find(config::named_file(&args));
    if let Some(path) = &file {
        let explained = |error| match &error {
            ConfigError::UnknownKey { key, .. } => match foreign::key_reason(key) {
                Some(reason) => anyhow::anyhow!("{}: {reason}", path.display()),
                None => error.into(),
            },
            _ => error.into(),
        };
        command = config::apply(command, path).map_err(explained).context("cannot use the configuration file")?;
    }
    let matches = command.try_get_matches_from(args).unwrap_or_else(|error| {
        if let Some(reason) = foreign::reason(&error) {
            eprintln!("error: {reason}");
            std::process::exit(error.exit_code());
        }
        if let (Some(path), ErrorKind::InvalidValue | ErrorKind::ValueValidation) = (&file, error.kind()) {
            // clap does not know where a default comes from.
            let _ = error.print();
            eprintln!("\nSettings are also read from {}.", path.display());
            std::process::exit(error.exit_code());
        }
        error.exit()
    });
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Generate(args) => generate::run(*args),
        Command::Inspect(args) => inspect::run(*args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
        Command::RunBatch(args) => batch::run(*args),
        Command::Completions(args) => shell::completions(Cli::command(), &args),
        Command::Man(args) => shell::man(Cli::command(), &args),
        Command::Plugins(args) => plugins::run(args),
        Command::Doctor(args) => doctor::run(args),
    }
}

/// An error with its causes, each said once: many of our errors quote their cause already.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.trim_end().to_owned()
}

/// Whether who reads our output, such as `head`, has seen enough: nothing to complain about.
pub fn is_closed_output(error: &anyhow::Error) -> bool {
    let broken = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    // A server may break a connection too.
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken)) && stdout_is_closed()
}

#[cfg(unix)]
fn stdout_is_closed() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = std::io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

#[cfg(not(unix))]
fn stdout_is_closed() -> bool {
    true
}

/// Sends the log to stderr, so that output can be piped. `usual` is the level if none is asked for.
fn start_log(args: &args::LogArgs, usual: &str) -> anyhow::Result<()> {
    let level = match (&args.log_level, args.uvicorn_log_level.as_deref()) {
        (Some(level), _) => level,
        (None, Some("critical")) => "error",
        (None, Some("warning")) => "warn",
        (None, Some(level)) => level,
        (None, None) => usual,
    };
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("--log-level {level}: expected error, warn, info, debug or trace, or a filter such as info,host::engine=debug")
    })?;
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
    fn what_vllm_has_and_we_do_not_is_refused_with_the_reason() {
        for (flag, word) in [("--tensor-parallel-size=2", "load balancer"), ("--lora_modules", "merge them")] {
            let error = Cli::try_parse_from(["host", "serve", flag]).expect_err("is refused");
            let reason = foreign::reason(&error).expect("a reason");
            assert!(reason.contains(word), "{reason}");
        }
        let error = Cli::try_parse_from(["host", "serve", "--nonsense"]).expect_err("is refused");
        assert_eq!(foreign::reason(&error), None);
    }

    #[test]
    fn what_is_always_so_may_be_asked_for() {
        for flag in ["--enable-chunked-prefill", "--disable-log-requests", "--enforce-eager", "--enable-prefix-caching"]
        {
            assert!(Cli::try_parse_from(["host", "serve", flag]).is_ok(), "{flag}");
        }
    }

    #[test]
    fn a_cause_that_is_quoted_already_is_not_repeated() {
        let cause = std::io::Error::other("no such file");
        let error = anyhow::Error::new(cause).context("a.json: no such file");
        assert_eq!(explain(&error), "a.json: no such file");
        assert_eq!(explain(&error.context("cannot load")), "cannot load: a.json: no such file");
    }

    #[test]
    fn defaults_are_those_of_the_library() {
        let cli = Cli::try_parse_from(["host", "serve"]).expect("parses");
        let Command::Serve(args) = cli.command else { panic!("another command") };
        let (options, defaults) = (args.model.options().expect("options"), crate::llm::LlmOptions::default());
        assert_eq!(format!("{options:?}"), format!("{defaults:?}"));
        assert_eq!(
            format!("{:?}", args.server_config().expect("a configuration")),
            format!("{:?}", crate::server::ServerConfig::default())
        );
    }
}
