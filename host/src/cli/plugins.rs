//! `host plugins`: list, check and create plugins, and fetch what the plugin `transformers` reads.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::args::{LogArgs, PackageArgs, SearchArgs};
use crate::registry::{Registry, RegistryOptions, commands};
use crate::transformers::{self, PackageOptions};

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
    /// Fetch the Python package that the plugin `transformers` reads, so that it is there when a model needs it
    FetchTransformers {
        /// Unpack this file instead: for machines without network
        wheel: Option<PathBuf>,
        #[command(flatten)]
        package: PackageArgs,
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

/// Brings the package into the cache and says where it is, and if another one will be used all the same.
fn fetch_transformers(wheel: Option<&Path>, package: &PackageArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut options = PackageOptions::default();
    package.apply(&mut options);
    let fetched = match wheel {
        Some(wheel) => transformers::install(wheel, &options)?,
        None => transformers::fetch(&options)?,
    };
    writeln!(out, "transformers {} is in {}", fetched.version, fetched.dir.display())?;
    match transformers::find(&options)? {
        Some(used) if used != fetched => {
            writeln!(out, "note: version {} in {} comes first ({})", used.version, used.dir.display(), used.origin)?;
        }
        _ => {}
    }
    Ok(())
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
        Command::FetchTransformers { wheel, package, log } => {
            super::start_log(&log, "warn")?;
            fetch_transformers(wheel.as_deref(), &package, &mut out)?;
        }
        Command::New { name, dir, plugin_api } => {
            let plugin_api = plugin_api.map_or(commands::PluginApi::Vendored, commands::PluginApi::Path);
            commands::new(&commands::NewOptions { name, dir, plugin_api }, &mut out)?;
        }
    }
    Ok(())
}
