//! Compiled kernels on disk, each under the hash of everything that it was made from. Files appear whole: they are written
//! beside their place and renamed.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The name of what is made from these parts.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// What is cached under this name, if it can be read.
pub(super) fn get(dir: Option<&Path>, name: &str) -> Option<Vec<u8>> {
    fs::read(dir?.join(name)).ok().filter(|bytes| !bytes.is_empty())
}

/// Keeps `bytes` under this name. A folder that cannot be written is as good as none: the next start compiles again.
pub(super) fn put(dir: Option<&Path>, name: &str, bytes: &[u8]) -> Option<PathBuf> {
    let dir = dir?;
    fs::create_dir_all(dir).ok()?;
    let part = dir.join(format!(".{name}.{}", std::process::id()));
    let place = dir.join(name);
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, &place)).ok()?;
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_apart_what_is_cut_differently() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
        assert_eq!(key([]).len(), 32);
    }

    #[test]
    fn what_was_put_is_got_and_an_unwritable_folder_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        assert_eq!(get(Some(&sub), "x"), None);
        assert_eq!(put(Some(&sub), "x", b"yes"), Some(sub.join("x")));
        assert_eq!(get(Some(&sub), "x").as_deref(), Some(&b"yes"[..]));
        assert_eq!(fs::read_dir(&sub).unwrap().count(), 1);
        // A file is in the place of the folder.
        assert_eq!(put(Some(&sub.join("x")), "y", b"no"), None);
        assert_eq!(put(None, "y", b"no"), None);
    }
}
