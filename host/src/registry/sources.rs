//! Gives a plugin the files that its description asks for, and nothing else: what is in [`Sources`] is what its sandbox
//! opens. Where the package `transformers` comes from is [`crate::transformers`]'s business; that a model's own code may be
//! read was decided by `llm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use plugin_api::{BuildRequest, Sources};

use super::cache::private_dir;
use super::{Cause, Registry, Selected};
use crate::config::cache_folder;
use crate::transformers::{self, Package, PackageOptions};

/// In [`plugin_api::Description::needs`]: the folder of the package `transformers`.
pub const TRANSFORMERS: &str = "transformers";
/// In [`plugin_api::Description::needs`]: the model's own code.
pub const MODEL_CODE: &str = "model-code";

/// Folders of derived files that were not used for this long are removed.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

impl Registry {
    /// The request with the sources that this plugin needs; those that it does not need are taken out. May fetch the package
    /// `transformers`.
    pub fn supply(&self, plugin: &Selected, request: &BuildRequest) -> Result<BuildRequest, super::PluginError> {
        let needs = &plugin.description.needs;
        let fail = |cause| plugin.error(cause, String::new());
        if let Some(other) = needs.iter().find(|n| ![TRANSFORMERS, MODEL_CODE].contains(&n.as_str())) {
            return Err(fail(Cause::Needs(other.clone())));
        }
        let wants = |name: &str| needs.iter().any(|need| need == name);
        let mut sources = Sources::default();
        if wants(MODEL_CODE) {
            sources.model_code = request.sources.model_code.clone();
        }
        if wants(TRANSFORMERS) {
            let package = match &request.sources {
                Sources { transformers: Some(dir), transformers_version: Some(version), .. } => {
                    (dir.clone(), version.clone())
                }
                _ => self.package().map_err(|e| fail(Cause::Sources(e.to_string())))?,
            };
            (sources.transformers, sources.transformers_version) = (Some(package.0), Some(package.1));
            // What a model's code writes must not be read when another model is loaded. And a folder that may be written needs
            // a sandbox that keeps it to that folder.
            if sources.model_code.is_none() && super::sandbox::confines_files() {
                sources.cache = self.derived_files(plugin.sha256());
            }
        }
        Ok(BuildRequest { sources, ..request.clone() })
    }

    /// Folder and version of the package, with a line in the log.
    fn package(&self) -> Result<(PathBuf, String), transformers::PackageError> {
        let package = transformers::find_or_fetch(&self.options.transformers)?;
        let Package { dir, version, origin } = &package;
        tracing::info!(version, path = %dir.display(), from = %origin, "transformers");
        if let Some(warning) = package.warning() {
            tracing::warn!("{warning}");
        }
        Ok((package.dir, package.version))
    }

    /// Where the package would be taken from, and how.
    pub fn package_options(&self) -> &PackageOptions {
        &self.options.transformers
    }

    /// A folder of this build of a plugin for what it derives from the package. Doing without is slower, no more.
    fn derived_files(&self, hash: &str) -> Option<PathBuf> {
        let root = match &self.options.cache_dir {
            Some(dir) => dir.join("derived"),
            None => cache_folder("derived")?,
        };
        let dir = root.join(hash.get(..32)?);
        if let Err(e) = private_dir(&root).and_then(|()| private_dir(&dir)) {
            tracing::debug!("plugins keep no derived files, {} cannot be used: {e}", dir.display());
            return None;
        }
        prune(&root, &dir);
        Some(dir)
    }
}

/// Marks `used` and removes its siblings that were not used for long.
fn prune(root: &Path, used: &Path) {
    let _ = fs::File::open(used).and_then(|dir| dir.set_modified(SystemTime::now()));
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let unused = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if unused.is_some_and(|t| t > KEEP) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
