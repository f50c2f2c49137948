//! Finds the Python package `transformers`, whose files the plugin of that name reads, and fetches it where there is none.
//!
//! The order: the folder that the user names; an active virtualenv; the user's and the system's site-packages; the cache,
//! filled on first need with one pinned wheel from a package index. No Python runs here: folders are looked at, versions
//! are read from text. Called by `registry`, which hands the folder to plugins, and by `cli`.

mod error;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod index;
mod places;
mod version;
mod wheel;

#[cfg(all(test, feature = "hub"))]
mod fetch_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::PackageError;
pub use places::site_packages;
pub use version::{TESTED, read_version};

use crate::config::cache_folder;

/// The index that is asked when nothing else is set.
pub const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// The wheel that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Its version.
    pub version: String,
    /// Its file name.
    pub file: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Default for Pin {
    fn default() -> Pin {
        Pin {
            version: "5.23.0".to_owned(),
            file: "transformers-5.23.0-py3-none-any.whl".to_owned(),
            sha256: "018e82fd07490ad5bb58414f65e31576033dc7f36bed10c574843f69b90991bf".to_owned(),
        }
    }
}

/// Where the package is looked for, and how it is fetched. Nothing else is read, so tests do not depend on the machine.
#[derive(Clone, Debug)]
pub struct PackageOptions {
    /// The package's folder, or one that holds it (a site-packages folder, an unpacked wheel).
    pub path: Option<PathBuf>,
    /// Site-packages folders to look into, in order.
    pub places: Vec<PathBuf>,
    /// Where the fetched package is kept; `None`: `host/transformers` in the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Base URL of the package index.
    pub index: String,
    /// Never use the network.
    pub offline: bool,
    /// Draw a progress bar on the terminal.
    pub progress: bool,
    /// How long nothing may arrive before a request is given up.
    pub timeout: Duration,
    /// How often a broken transfer is tried again before it is an error.
    pub retries: u32,
    /// Wait before the first of these tries; it doubles with each.
    pub retry_delay: Duration,
    /// What is fetched.
    pub pin: Pin,
}

impl Default for PackageOptions {
    /// What the environment says; offline if Hugging Face's own tools would be.
    fn default() -> PackageOptions {
        let hub = crate::hub::HubOptions::from_env();
        let index = std::env::var("PIP_INDEX_URL").ok();
        PackageOptions {
            path: None,
            places: site_packages(),
            cache_dir: None,
            index: index.filter(|url| !url.is_empty()).unwrap_or_else(|| DEFAULT_INDEX.to_owned()),
            offline: hub.offline,
            progress: hub.progress,
            timeout: hub.timeout,
            retries: hub.retries,
            retry_delay: hub.retry_delay,
            pin: Pin::default(),
        }
    }
}

/// Where a package was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user named it.
    Setting,
    /// Installed by Python's tools.
    Installed,
    /// Fetched.
    Cache,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Setting => "--transformers-path",
            Origin::Installed => "installed",
            Origin::Cache => "cache",
        })
    }
}

/// The package on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The folder that holds `__init__.py` and `models`.
    pub dir: PathBuf,
    /// Its version.
    pub version: String,
    /// Why this one.
    pub origin: Origin,
}

impl Package {
    /// What is to be said about its version; `None`: it is one that was tested.
    pub fn warning(&self) -> Option<String> {
        version::warning(&self.version).map(|what| {
            format!(
                "transformers {} ({}) is {what}; models may fail to load: name another with --transformers-path, or \
                 have host fetch {} into its cache with `host plugins fetch-transformers` and no other installed",
                self.version,
                self.dir.display(),
                Pin::default().version
            )
        })
    }
}

/// Whether the package in this folder has a model class of this name, by the text of its tables.
pub fn knows(dir: &Path, architecture: &str) -> bool {
    let table = std::fs::read_to_string(dir.join("models/auto/modeling_auto.py")).unwrap_or_default();
    table.contains(&format!("\"{architecture}\""))
}

/// Finds the package without the network. `None`: it would have to be fetched.
pub fn find(options: &PackageOptions) -> Result<Option<Package>, PackageError> {
    if let Some(path) = &options.path {
        return named(path).map(Some);
    }
    for place in &options.places {
        let dir = place.join("transformers");
        match read_version(&dir) {
            Ok(version) if version::same_major(&version) => {
                return Ok(Some(Package { dir, version, origin: Origin::Installed }));
            }
            Ok(version) => tracing::warn!(
                "transformers {version} in {} is not used: host reads versions {} to {}; --transformers-path uses it all the same",
                place.display(),
                TESTED.0,
                TESTED.1
            ),
            // A folder without the package is the usual case.
            Err(reason) => tracing::trace!("{}: {reason}", dir.display()),
        }
    }
    let Some(cache) = cache_dir(options) else { return Ok(None) };
    let dir = wheel::place(&cache, &options.pin).join("transformers");
    let there = dir.join("__init__.py").is_file();
    Ok(there.then(|| Package { dir, version: options.pin.version.clone(), origin: Origin::Cache }))
}

/// The package, fetched if need be. Blocks; may be called from any thread.
pub fn find_or_fetch(options: &PackageOptions) -> Result<Package, PackageError> {
    match find(options)? {
        Some(package) => Ok(package),
        None => fetch(options),
    }
}

/// Fetches the pinned wheel into the cache, unless it is there.
pub fn fetch(options: &PackageOptions) -> Result<Package, PackageError> {
    let cache = cache_dir(options).ok_or(PackageError::NoCache)?;
    let dir = wheel::place(&cache, &options.pin).join("transformers");
    if !dir.join("__init__.py").is_file() {
        if options.offline {
            return Err(PackageError::Offline { version: options.pin.version.clone(), looked: looked(options) });
        }
        download(&cache, options)?;
    }
    Ok(Package { dir, version: options.pin.version.clone(), origin: Origin::Cache })
}

/// Unpacks a wheel that the user has brought into the cache.
pub fn install(wheel: &Path, options: &PackageOptions) -> Result<Package, PackageError> {
    let cache = cache_dir(options).ok_or(PackageError::NoCache)?;
    let dir = wheel::install(wheel, &cache, &options.pin)?.join("transformers");
    Ok(Package { dir, version: options.pin.version.clone(), origin: Origin::Cache })
}

#[cfg(feature = "hub")]
fn download(cache: &Path, options: &PackageOptions) -> Result<(), PackageError> {
    fetch::fetch(cache, options)
}

#[cfg(not(feature = "hub"))]
fn download(_: &Path, options: &PackageOptions) -> Result<(), PackageError> {
    Err(PackageError::Offline { version: options.pin.version.clone(), looked: looked(options) })
}

/// The folder that the user named: the package, or one that holds it.
fn named(path: &Path) -> Result<Package, PackageError> {
    let inner = path.join("transformers");
    let dir = if inner.join("__init__.py").is_file() { inner } else { path.to_owned() };
    let fail = |reason: String| PackageError::NotAPackage { path: path.to_owned(), reason };
    let version = read_version(&dir).map_err(fail)?;
    let dir = dir.canonicalize().map_err(|e| fail(e.to_string()))?;
    Ok(Package { dir, version, origin: Origin::Setting })
}

fn cache_dir(options: &PackageOptions) -> Option<PathBuf> {
    options.cache_dir.clone().or_else(|| cache_folder("transformers"))
}

/// The places that were searched, for errors.
pub fn looked(options: &PackageOptions) -> Vec<PathBuf> {
    options.places.iter().cloned().chain(cache_dir(options)).collect()
}
