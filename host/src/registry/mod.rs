//! Discovers architecture plugins, chooses one for a model and has it build the model's graph.
//!
//! Plugins are code of strangers. This module never loads one into the host's process: every question to a plugin is put
//! in a worker process (`worker`) with limits and a deadline, from a private copy of its file (`cache`). A bad plugin is
//! a [`PluginError`] of one line, whatever it does. It knows nothing of weights, executors or HTTP. Called by `llm` (to load
//! a model) and by `cli` (`host plugins`, [`commands`]).

mod cache;
mod call;
pub mod commands;
mod error;
mod frame;
mod image;
mod loader;
mod sandbox;
mod search;
mod select;
mod sources;
mod template;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plugin_api::{BuildRequest, Description, IrVersion, Model, spec};

pub use error::{Cause, PluginError, Stage};
pub use sandbox::{SandboxSupport, support as sandbox_support};
pub use search::{Directory, Origin, implicit_dirs};
pub use select::{ModelImpl, SelectError, Selected};
pub use sources::{MODEL_CODE, TRANSFORMERS};
pub use worker::{WORKER_ARGUMENT, is_worker, worker_main};

use cache::{Cache, Copy, Trust};
use call::Caller;
use error::one_line;

use crate::transformers::PackageOptions;

/// Default of [`RegistryOptions::deadline`].
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// Most time for a plugin to describe itself, whatever the deadline: one that hangs must not hold up every start.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(20);
/// Default of [`RegistryOptions::memory_limit`], in bytes.
pub const DEFAULT_MEMORY_LIMIT: u64 = 2 << 30;
/// Default of [`RegistryOptions::answer_limit`], in bytes.
pub const DEFAULT_ANSWER_LIMIT: u64 = 64 << 20;

/// How plugins are found and run.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Folders of `--plugins-dir`, searched first. Each must be there and be safe.
    pub dirs: Vec<PathBuf>,
    /// Folders that are searched after them, if they are there; see [`implicit_dirs`], the default.
    pub implicit_dirs: Vec<PathBuf>,
    /// The program that runs [`worker_main`] when [`is_worker`] says so; by default the running one.
    pub worker: PathBuf,
    /// Wall-clock time for one question to a plugin.
    pub deadline: Duration,
    /// Memory that a plugin may use, in bytes of address space.
    pub memory_limit: u64,
    /// Largest answer of a plugin, in bytes.
    pub answer_limit: u64,
    /// Where private copies are kept; by default `host/plugins` in the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Where the package `transformers` comes from, for plugins that need it.
    pub transformers: PackageOptions,
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions {
            dirs: Vec::new(),
            implicit_dirs: implicit_dirs(),
            // On Linux this stays valid when the file is replaced by an update while the server runs.
            worker: if cfg!(target_os = "linux") {
                PathBuf::from("/proc/self/exe")
            } else {
                std::env::current_exe().unwrap_or_else(|_| PathBuf::from("host"))
            },
            deadline: DEFAULT_DEADLINE,
            memory_limit: DEFAULT_MEMORY_LIMIT,
            answer_limit: DEFAULT_ANSWER_LIMIT,
            cache_dir: None,
            transformers: PackageOptions::default(),
        }
    }
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A folder of `--plugins-dir` cannot be used.
    #[error("--plugins-dir {}: it {reason}", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A program that uses this library, and was started as a worker, did not become one.
    #[error(
        "this program was started as a plugin worker: its `main` must first ask `registry::is_worker` and return \
             `registry::worker_main()`, or `RegistryOptions::worker` must name the program `host`"
    )]
    IsWorker,
    /// Nowhere to keep private copies.
    #[error("plugins need a folder for their private copies, and not even a temporary one can be made: {0}")]
    Cache(#[from] std::io::Error),
}

/// A plugin file of the search path.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// What the plugin says about itself, or why it cannot be used.
    pub description: Result<Description, PluginError>,
    /// The usable plugin of the same name that was found earlier and hides this one.
    pub hidden_by: Option<PathBuf>,
    copy: Option<Copy>,
}

/// The plugins of this machine. Looks at the folders anew at every call: a plugin that is dropped into one is seen.
#[derive(Debug)]
pub struct Registry {
    options: RegistryOptions,
    cache: Cache,
}

/// Workers that describe plugins at the same time.
const SCANNERS: usize = 4;

impl Registry {
    /// A registry over the search path. A folder of `--plugins-dir` that is missing or unsafe is an error; others are
    /// left out, with a warning where they are unsafe.
    pub fn new(options: RegistryOptions) -> Result<Registry, RegistryError> {
        if is_worker() {
            // Going on would start a worker that starts a worker, and so on.
            return Err(RegistryError::IsWorker);
        }
        let cache = Cache::open(options.cache_dir.as_deref())?;
        let registry = Registry { options, cache };
        for dir in registry.directories() {
            match (dir.refused, dir.origin) {
                (Some(reason), Origin::Explicit) => return Err(RegistryError::Directory { path: dir.path, reason }),
                (Some(reason), Origin::Implicit) => {
                    tracing::warn!("no plugins are loaded from {}: it {reason}", dir.path.display());
                }
                (None, _) => {}
            }
        }
        Ok(registry)
    }

    /// The folders of the search path as they are now, in order; those that are missing and not named by the user are left
    /// out.
    pub fn directories(&self) -> Vec<Directory> {
        search::directories(&self.options.dirs, &self.options.implicit_dirs)
    }

    /// All plugin files of the search path, in its order, with what they say about themselves.
    pub fn scan(&self) -> Vec<Found> {
        let mut files = Vec::new();
        for dir in self.directories().iter().filter(|d| d.refused.is_none()) {
            match search::plugin_files(&dir.path) {
                Ok(found) => files.extend(found),
                Err(e) => tracing::warn!("plugins in {} cannot be listed: {e}", dir.path.display()),
            }
        }
        let mut found = self.describe_all(&files);
        hide_doubles(&mut found);
        found
    }

    /// Describes files on a few threads: one plugin that hangs costs one deadline, not one each.
    fn describe_all(&self, files: &[PathBuf]) -> Vec<Found> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(files.len()));
        std::thread::scope(|scope| {
            for _ in 0..SCANNERS.min(files.len()) {
                scope.spawn(|| {
                    while let Some((i, path)) = take_next(&next, files) {
                        let found = self.look_at(path, Trust::Check);
                        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, found));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, found)| found).collect()
    }

    /// Looks at one file that need not be in the search path; its owner and mode do not matter.
    pub fn inspect(&self, path: &Path) -> Found {
        self.look_at(path, Trust::Named)
    }

    fn look_at(&self, path: &Path, trust: Trust) -> Found {
        let fail = |cause, output| PluginError { path: path.to_owned(), name: None, cause, output };
        let (copy, description) = match self.cache.take(path, trust) {
            Err(cause) => (None, Err(fail(cause, String::new()))),
            Ok(copy) => {
                let description = self.describe(&copy).map_err(|(cause, output)| fail(cause, output));
                (Some(copy), description)
            }
        };
        Found { path: path.to_owned(), description, hidden_by: None, copy }
    }

    fn describe(&self, copy: &Copy) -> Result<Description, (Cause, String)> {
        if let Some(known) = self.cache.description(&copy.hash).filter(|d| check_description(d).is_ok()) {
            return Ok(known);
        }
        let caller = self.caller();
        let caller = Caller { deadline: caller.deadline.min(DESCRIBE_DEADLINE), ..caller };
        let (answer, output) = caller.ask(copy.path.as_os_str(), None);
        let description = answer.and_then(|bytes| read_description(&bytes)).map_err(|cause| (cause, output))?;
        self.cache.keep_description(&copy.hash, &description);
        Ok(description)
    }

    /// Has a plugin build a model's graph from the request and the sources that it needs; the answer is the text form, not yet parsed. Called from any thread, which it
    /// blocks until the plugin has answered or the deadline has passed.
    pub fn build(&self, plugin: &Selected, request: &BuildRequest) -> Result<Vec<u8>, PluginError> {
        let fail = |cause, output| plugin.error(cause, output);
        let request = serde_json::to_vec(&self.supply(plugin, request)?)
            .map_err(|e| fail(Cause::Worker(format!("the request cannot be written: {e}")), String::new()))?;
        let (answer, output) = self.caller().ask(plugin.copy.path.as_os_str(), Some(&request));
        if !output.is_empty() {
            tracing::debug!("plugin `{}` printed: {}", plugin.description.name, one_line(&output, 1000));
        }
        answer.map_err(|cause| fail(cause, output))
    }

    /// [`build`](Registry::build), parsed and verified.
    pub fn build_model(&self, plugin: &Selected, request: &BuildRequest) -> Result<Model, PluginError> {
        let answer = self.build(plugin, request)?;
        read_model(&answer, plugin.ir()).map_err(|cause| plugin.error(cause, String::new()))
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            program: &self.options.worker,
            deadline: self.options.deadline,
            memory_limit: self.options.memory_limit,
            answer_limit: self.options.answer_limit,
        }
    }
}

fn take_next<'a>(next: &AtomicUsize, files: &'a [PathBuf]) -> Option<(usize, &'a PathBuf)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    files.get(i).map(|path| (i, path))
}

/// Of several plugins with one name, the first is used.
fn hide_doubles(found: &mut [Found]) {
    let mut first: Vec<(String, PathBuf)> = Vec::new();
    for plugin in found {
        let Ok(description) = &plugin.description else { continue };
        match first.iter().find(|(name, _)| *name == description.name) {
            Some((name, path)) => {
                tracing::info!("plugin `{name}` {} is not used: {} comes first", plugin.path.display(), path.display());
                plugin.hidden_by = Some(path.clone());
            }
            None => first.push((description.name.clone(), plugin.path.clone())),
        }
    }
}

/// Reads an answer to `describe`.
fn read_description(bytes: &[u8]) -> Result<Description, Cause> {
    let stage = Stage::Describe;
    let rubbish = |what: String| Cause::Rubbish { stage, what };
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|e| rubbish(format!("{} bytes that are not a description: {e}", bytes.len())))?;
    if let Some(error) = value.get("error").and_then(|e| e.as_str()) {
        let message = error.strip_prefix(plugin_api::PANICKED).unwrap_or(error);
        return Err(Cause::Panicked { stage, message: format!("at {}", one_line(message, 500)) });
    }
    // Before the rest is read: another major version may describe itself otherwise.
    let ir = value.get("ir").and_then(|v| v.as_str()).and_then(|v| v.parse::<IrVersion>().ok());
    if let Some(found) = ir.filter(|ir| ir.major != IrVersion::CURRENT.major) {
        return Err(Cause::Ir { found, host: IrVersion::CURRENT });
    }
    let description: Description =
        serde_json::from_value(value).map_err(|e| rubbish(format!("a description with a fault: {e}")))?;
    check_description(&description).map_err(rubbish)?;
    Ok(description)
}

/// Whether a description can be printed and chosen by.
fn check_description(d: &Description) -> Result<(), String> {
    let word =
        |s: &str| !s.is_empty() && s.len() <= 64 && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if !word(&d.name) {
        return Err(format!("the name `{}` is not 1 to 64 letters, digits, `-` or `_`", one_line(&d.name, 64)));
    }
    if ["auto", "native"].contains(&d.name.as_str()) {
        return Err(format!("the name `{}` means something else in --model-impl", d.name));
    }
    d.ir.parse::<IrVersion>()?;
    if d.architectures.is_empty() || d.architectures.len() > 10_000 {
        return Err(format!("it names {} architectures, expected are 1 to 10000", d.architectures.len()));
    }
    let texts = [&d.version, &d.license, &d.summary].into_iter().chain(&d.architectures);
    match texts.into_iter().find(|t| t.len() > 1000 || t.chars().any(char::is_control)) {
        Some(text) => Err(format!("a text with control characters or over 1000 bytes: `{}`", one_line(text, 60))),
        None => Ok(()),
    }
}

/// Reads an answer to `build`.
fn read_model(answer: &[u8], ir: IrVersion) -> Result<Model, Cause> {
    let model = Model::parse_bytes(answer).map_err(|e| match e {
        plugin_api::ParseError::Version { major, minor } => {
            Cause::Ir { found: IrVersion { major, minor }, host: IrVersion::CURRENT }
        }
        plugin_api::ParseError::NotAGraph(_) | plugin_api::ParseError::NotText(_) => Cause::Rubbish {
            stage: Stage::Build,
            what: format!("{} bytes, {}", answer.len(), one_line(&e.to_string(), 300)),
        },
        e => Cause::Graph { message: one_line(&e.to_string(), 1000), ir },
    })?;
    spec::verify(&model).map_err(|e| Cause::Graph { message: one_line(&e.to_string(), 1000), ir })?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(name: &str) -> Description {
        Description {
            name: name.to_owned(),
            version: "1".into(),
            license: "MIT".into(),
            ir: "1.0".into(),
            architectures: vec!["A".into()],
            summary: "s".into(),
            needs: vec![],
        }
    }

    #[test]
    fn descriptions_are_checked_before_they_are_printed_or_chosen_by() {
        let read = |d: &Description| read_description(&serde_json::to_vec(d).unwrap());
        assert!(read(&description("ok-1_x")).is_ok());
        for name in ["", "a b", "auto", "native", "\u{1b}[31m", &"x".repeat(65)] {
            assert!(matches!(read(&description(name)), Err(Cause::Rubbish { .. })), "{name}");
        }
        let mut d = description("x");
        d.summary = "bell \u{7}".into();
        assert!(read(&d).is_err());
        d = description("x");
        d.architectures.clear();
        assert!(read(&d).is_err());
    }

    #[test]
    fn another_major_ir_version_is_named_even_if_the_rest_is_unknown() {
        let cause = read_description(br#"{"ir":"2.0","whatever":1}"#).unwrap_err();
        assert!(cause.to_string().contains("speaks graph IR 2.0"), "{cause}");
        assert!(cause.to_string().contains("use a newer host"), "{cause}");
        let cause = read_description(br#"{"ir":"0.9"}"#).unwrap_err();
        assert!(cause.to_string().contains("rebuild the plugin"), "{cause}");
    }
}
