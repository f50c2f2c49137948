//! Why there is no package `transformers`, each as one line that says what to do.

use std::path::{Path, PathBuf};

/// Why the package cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The folder that the user named.
    #[error(
        "--transformers-path {}: {reason}; name the package's folder (with __init__.py and models), or a site-packages \
         folder that holds it", path.display()
    )]
    NotAPackage {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Nowhere, and the network is not to be used.
    #[error(
        "the Python package transformers is not on this machine (looked in {}) and host is offline (HF_HUB_OFFLINE, or built \
         without downloads); run `host plugins fetch-transformers` with network, or bring transformers-{version}-py3-none-any.whl \
         here and run `host plugins fetch-transformers WHEEL`, or name an installed package with --transformers-path",
        list(looked)
    )]
    Offline {
        /// The version that would be fetched.
        version: String,
        /// The folders.
        looked: Vec<PathBuf>,
    },
    /// The index does not answer as it should.
    #[error(
        "fetching {file} from {index} failed: {message}; check the network and --transformers-index, or bring the file here \
         and run `host plugins fetch-transformers WHEEL`"
    )]
    Fetch {
        /// The wheel.
        file: String,
        /// The index.
        index: String,
        /// What happened.
        message: String,
    },
    /// Not the pinned file.
    #[error(
        "{what} is not the file that host was made for: its sha256 is {got}, expected is {expected}; it was not used, get \
         {file} of transformers' release"
    )]
    WrongHash {
        /// Where it came from.
        what: String,
        /// Its hash.
        got: String,
        /// The pinned one.
        expected: String,
        /// The right file's name.
        file: String,
    },
    /// The wheel cannot be unpacked.
    #[error("{}: {message}", path.display())]
    Wheel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The cache cannot be written.
    #[error(
        "transformers cannot be kept in {}: {message}; make the folder writable, choose another with XDG_CACHE_HOME, or name \
         an installed package with --transformers-path", path.display()
    )]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// No home folder.
    #[error(
        "there is no cache folder for the package transformers: set HOME or XDG_CACHE_HOME, or --transformers-path"
    )]
    NoCache,
}

impl PackageError {
    pub(super) fn cache(path: &Path) -> impl FnOnce(std::io::Error) -> PackageError + use<> {
        let path = path.to_owned();
        move |error| PackageError::Cache { path, message: error.to_string() }
    }
}

fn list(paths: &[PathBuf]) -> String {
    match paths {
        [] => "no folder: there is no Python".to_owned(),
        paths => paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}
