//! `host plugins`: list, check and create plugins.

use std::path::PathBuf;

use clap::Subcommand;

use super::args::{LogArgs, SearchArgs};
use crate::registry::{Registry, RegistryOptions, commands};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show every plugin of the search path, and what is wrong with the broken ones
    List {
        #[command(flatten)]
        search: SearchArgs,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Load one plugin file and say whether it is good
    Check {
        /// The plugin
        file: PathBuf,
        /// Also build the model of this configuration
        #[arg(long, value_name = "CONFIG_JSON")]
        model_config: Option<PathBuf>,
        #[command(flatten)]
        search: SearchArgs,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Write a crate with a small working plugin
    New {
        /// Name of the plugin: lower case letters, digits and underscores
        name: String,
        /// Folder of the crate [default: host_plugin_NAME]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Take plugin-api from this folder instead of a copy beside the crate
        #[arg(long, value_name = "DIR")]
        plugin_api: Option<PathBuf>,
    },
}

fn registry(search: &SearchArgs) -> anyhow::Result<Registry> {
    let mut options = RegistryOptions::default();
    search.apply(&mut options);
    Ok(Registry::new(options)?)
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match args.command {
        Command::List { search, log } => {
            super::start_log(&log, "warn")?;
            commands::list(&registry(&search)?, &mut out)?;
        }
        Command::Check { file, model_config, search, log } => {
            super::start_log(&log, "warn")?;
            commands::check(&registry(&search)?, &file, model_config.as_deref(), &mut out)?;
        }
        Command::New { name, dir, plugin_api } => {
            let plugin_api = plugin_api.map_or(commands::PluginApi::Vendored, commands::PluginApi::Path);
            commands::new(&commands::NewOptions { name, dir, plugin_api }, &mut out)?;
        }
    }
    Ok(())
}
