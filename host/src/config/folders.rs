//! The user's folders, by the XDG rules. Reads the environment, creates nothing.

use std::path::PathBuf;

/// `host/NAME` in the user's cache folder; `None`: there is no home.
pub fn cache_folder(name: &str) -> Option<PathBuf> {
    // A relative XDG path is invalid by its specification.
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")))?;
    Some(base.join("host").join(name))
}
