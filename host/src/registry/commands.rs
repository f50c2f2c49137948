//! `host plugins list`, `check FILE` and `new NAME`: what they do and print. The command line itself is parsed in `cli`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plugin_api::{BuildRequest, Description, IrVersion, Model};

pub use super::template::PluginApi;
use super::{Directory, Found, PluginError, Registry, Selected, read_model, search, template};

/// Largest config.json that `check` reads.
const MAX_CONFIG: u64 = 16 << 20;

/// Why a command failed; what it printed before stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The plugin is not good.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin gives other graphs for the same configuration.
    #[error("plugin {}: built two different graphs from one configuration; a plugin must be a pure function", .0.display())]
    NotPure(PathBuf),
    /// A configuration cannot be read.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Not a name for a plugin.
    #[error("host plugins new: {0}")]
    Name(String),
    /// The crate cannot be written.
    #[error("the crate {} cannot be written: {source}", path.display())]
    Write {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The output is gone.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

/// Prints all plugins of the search path, those that cannot be used with the reason, and the folders.
pub fn list(registry: &Registry, out: &mut dyn Write) -> Result<(), CommandError> {
    let found = registry.scan();
    let (mut rows, mut notes) =
        (vec![["NAME", "VERSION", "LICENSE", "IR", "ARCHITECTURES", "FILE"].map(str::to_owned)], vec![]);
    for plugin in &found {
        match &plugin.description {
            Ok(d) => {
                rows.push(row(d, &plugin.path));
                if let Some(other) = &plugin.hidden_by {
                    notes.push(format!(
                        "{}: not used, {} has the same name and comes first",
                        plugin.path.display(),
                        other.display()
                    ));
                }
            }
            Err(e) => notes.push(e.to_string()),
        }
    }
    if rows.len() > 1 {
        print_table(&rows, out)?;
    } else {
        writeln!(out, "no plugins")?;
    }
    if !notes.is_empty() {
        writeln!(out)?;
    }
    for note in notes {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "\nsearched, in this order:")?;
    for Directory { path, refused, .. } in registry.directories() {
        match refused {
            None => writeln!(out, "  {}", path.display())?,
            Some(reason) => writeln!(out, "  {}: not used, it {reason}", path.display())?,
        }
    }
    Ok(())
}

fn row(d: &Description, path: &Path) -> [String; 6] {
    const SHOWN: usize = 3;
    let mut architectures = d.architectures.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if d.architectures.len() > SHOWN {
        architectures.push_str(&format!(" and {} more", d.architectures.len() - SHOWN));
    }
    let path = path.display().to_string();
    [d.name.clone(), d.version.clone(), d.license.clone(), d.ir.clone(), architectures, path]
}

/// Columns as wide as their widest cell, two blanks between them; the last is not padded.
fn print_table<const N: usize>(rows: &[[String; N]], out: &mut dyn Write) -> io::Result<()> {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Loads a plugin file, which need not be in the search path, has it describe itself and, with a config.json, build the
/// model twice; prints each step. Fails at the first one that goes wrong.
pub fn check(registry: &Registry, file: &Path, config: Option<&Path>, out: &mut dyn Write) -> Result<(), CommandError> {
    let start = Instant::now();
    let found = registry.inspect(file);
    if let Some(copy) = &found.copy {
        writeln!(out, "file      {} ({} KiB, sha256 {})", file.display(), copy.size.div_ceil(1024), copy.hash)?;
    }
    note_on_place(&found, out)?;
    let plugin = found.select()?;
    let d = &plugin.description;
    writeln!(
        out,
        "describe  {} {} ({}): {} [{}]",
        d.name,
        d.version,
        d.license,
        d.summary,
        milliseconds(start.elapsed())
    )?;
    writeln!(out, "          graph IR {}, this host's is {}", d.ir, IrVersion::CURRENT)?;
    writeln!(out, "          builds {}", d.architectures.join(", "))?;
    match config {
        Some(config) => check_build(registry, &plugin, config, out)?,
        None => writeln!(out, "build     not tried; give a model's config.json with --model-config")?,
    }
    writeln!(out, "ok")?;
    Ok(())
}

/// Says if the file would not be found, or would be refused, where it lies.
fn note_on_place(found: &Found, out: &mut dyn Write) -> io::Result<()> {
    if !found.path.exists() {
        return Ok(()); // the error says so
    }
    let name = found.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if !search::is_plugin_name(&name) {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        writeln!(out, "note      in a plugins folder only {prefix}host_plugin_*{suffix} is looked at; rename it")?;
    }
    let refused = fs::metadata(&found.path).ok().and_then(|meta| search::distrust_file(&meta, &found.path));
    match refused {
        Some(reason) => writeln!(out, "note      in a plugins folder it would be refused: it {reason}"),
        None => Ok(()),
    }
}

fn check_build(registry: &Registry, plugin: &Selected, path: &Path, out: &mut dyn Write) -> Result<(), CommandError> {
    let fail = |reason: String| CommandError::Config { path: path.to_owned(), reason };
    let size = fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?.len();
    if size > MAX_CONFIG {
        return Err(fail(format!("has {size} bytes, the limit for a config.json is {MAX_CONFIG}")));
    }
    let text = fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let config = serde_json::from_slice(&text).map_err(|e| fail(format!("is not JSON: {e}")))?;
    let request = BuildRequest::new(config, Vec::new());
    let start = Instant::now();
    let answer = registry.build(plugin, &request)?;
    let took = start.elapsed();
    writeln!(out, "build     {}: {} bytes [{}]", path.display(), answer.len(), milliseconds(took))?;
    if !request.architecture().is_some_and(|a| plugin.description.claims(a)) && !plugin.description.claims_any() {
        writeln!(
            out,
            "note      the plugin does not claim this architecture: only --model-impl {} takes it",
            plugin.description.name
        )?;
    }
    let model = read_model(&answer, plugin.ir()).map_err(|cause| plugin.error(cause, String::new()))?;
    writeln!(out, "verify    {}", summary(&model))?;
    if registry.build(plugin, &request)? != answer {
        return Err(CommandError::NotPure(plugin.path.clone()));
    }
    writeln!(out, "again     the second build gives the same graph")?;
    Ok(())
}

fn summary(model: &Model) -> String {
    let graphs = model.graphs.iter().map(|(name, graph)| {
        let weights = graph.weights();
        let parameters: usize = weights.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let states = graph.kv_states().len();
        let nodes = graph.nodes.len();
        format!(
            "{name}: {nodes} nodes, {} weights of {parameters} parameters, {states} attention states",
            weights.len()
        )
    });
    let graphs: Vec<String> = graphs.collect();
    format!("{}, context of {} tokens; {}", model.architecture, model.context_length, graphs.join("; "))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// What `host plugins new` is told.
#[derive(Clone, Debug)]
pub struct NewOptions {
    /// Name of the plugin.
    pub name: String,
    /// Folder of the crate, which must not exist; by default `host_plugin_NAME` here.
    pub dir: Option<PathBuf>,
    /// Where the crate takes `plugin-api` from.
    pub plugin_api: PluginApi,
}

/// Writes a crate with a small architecture that builds anywhere and passes its own test.
pub fn new(options: &NewOptions, out: &mut dyn Write) -> Result<(), CommandError> {
    let NewOptions { name, dir, plugin_api } = options;
    template::check_name(name).map_err(CommandError::Name)?;
    let dir = dir.clone().unwrap_or_else(|| PathBuf::from(format!("host_plugin_{name}")));
    let written =
        template::write(&dir, name, plugin_api).map_err(|source| CommandError::Write { path: dir.clone(), source })?;
    for file in written.iter().filter(|f| !f.starts_with(dir.join("vendor"))) {
        writeln!(out, "{}", file.display())?;
    }
    if *plugin_api == PluginApi::Vendored {
        writeln!(out, "{}: the sources of plugin-api {}", dir.join("vendor").display(), env!("CARGO_PKG_VERSION"))?;
    }
    writeln!(out, "\nnext: cd {} && cargo test && cargo build --release; README.md says how to go on", dir.display())?;
    Ok(())
}
