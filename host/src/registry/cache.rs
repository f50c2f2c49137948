//! The private copies of plugin files, named by the hash of their content, and what the plugins said about themselves.
//!
//! A plugin is never loaded from where it lies: the file may be replaced at any moment, and the dynamic linker would give the
//! old code for a path that it knows. What was hashed is what is loaded. The folder belongs to the current user alone
//! (0700); if that cannot be had, a temporary one is used. The descriptions are kept beside the copies, so that a start-up
//! with known plugins starts no process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use plugin_api::Description;
use sha2::{Digest, Sha256};

use super::error::Cause;
use super::{image, search};
use crate::config::cache_folder;

/// Largest plugin file.
const MAX_BYTES: u64 = 1 << 30;
/// Copies that were not used for this long are removed.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// The folder of private copies.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Removes `dir` at the end where it is a temporary one.
    _temporary: Option<tempfile::TempDir>,
}

/// A private copy.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of its content in hexadecimal.
    pub hash: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Whether the file's owner and mode matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Found in a folder: only files that nobody else can write.
    Check,
    /// Named by the user.
    Named,
}

impl Cache {
    /// Opens `dir`, or the user's cache folder, or else a temporary folder.
    pub(super) fn open(dir: Option<&Path>) -> io::Result<Cache> {
        if let Some(wanted) = dir.map(Path::to_owned).or_else(|| cache_folder("plugins")) {
            match private_dir(&wanted) {
                Ok(()) => return Ok(Cache { dir: wanted, _temporary: None }),
                Err(e) => {
                    tracing::warn!("plugins are copied to a temporary folder, {} cannot be used: {e}", wanted.display())
                }
            }
        }
        let temporary = tempfile::Builder::new().prefix("host-plugins-").tempdir()?;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o700))?;
        Ok(Cache { dir: temporary.path().to_owned(), _temporary: Some(temporary) })
    }

    /// Checks a plugin file and makes its private copy, unless there is one.
    pub(super) fn take(&self, path: &Path, trust: Trust) -> Result<Copy, Cause> {
        let unreadable = |e: io::Error| Cause::Unreadable(e.to_string());
        // Not to wait for a writer should it be a named pipe.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
        let meta = file.metadata().map_err(unreadable)?;
        if !meta.is_file() {
            return Err(Cause::NotALibrary("it is not a regular file".to_owned()));
        }
        if let (Trust::Check, Some(reason)) = (trust, search::distrust_file(&meta, path)) {
            return Err(Cause::Refused(reason));
        }
        if meta.len() > MAX_BYTES {
            return Err(Cause::Refused(format!("it has {} bytes, the limit is {MAX_BYTES}", meta.len())));
        }
        image::check(&file, meta.len())?;
        let (hash, _) = hash_into(&mut file, &mut io::sink()).map_err(unreadable)?;
        if let Some(copy) = self.existing(&hash, meta.len()) {
            return Ok(copy);
        }
        self.copy(path, trust).map_err(|e| Cause::Worker(format!("no private copy in {}: {e}", self.dir.display())))
    }

    fn existing(&self, hash: &str, size: u64) -> Option<Copy> {
        let path = self.copy_path(hash);
        let file = File::open(&path).ok()?;
        if file.metadata().ok()?.len() != size {
            return None;
        }
        // For `prune`; a copy that cannot be marked is merely copied again some day.
        let _ = file.set_modified(SystemTime::now());
        Some(Copy { path, hash: hash.to_owned(), size })
    }

    /// Copies and hashes in one pass: the name fits the content even if the file is changed meanwhile.
    fn copy(&self, path: &Path, trust: Trust) -> io::Result<Copy> {
        self.prune();
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if let (Trust::Check, Some(reason)) = (trust, search::distrust_file(&file.metadata()?, path)) {
            return Err(io::Error::other(reason));
        }
        let mut copy = tempfile::Builder::new().prefix("new-").tempfile_in(&self.dir)?;
        let (hash, size) = hash_into(&mut file, copy.as_file_mut())?;
        copy.as_file().set_permissions(fs::Permissions::from_mode(0o500))?;
        copy.as_file().sync_all()?;
        let path = self.copy_path(&hash);
        // Another thread or process may have made the same copy meanwhile, and a worker may be opening it: a file that is
        // replaced under its name is another one to the worker's sandbox.
        match copy.persist_noclobber(&path) {
            Ok(_) => {}
            Err(_) if self.existing(&hash, size).is_some() => {}
            Err(e) => drop(e.file.persist(&path).map_err(|e| e.error)?),
        }
        Ok(Copy { path, hash, size })
    }

    fn copy_path(&self, hash: &str) -> PathBuf {
        self.dir.join(format!("{hash}{}", std::env::consts::DLL_SUFFIX))
    }

    /// Descriptions of another version of the host are not used: it may read them differently.
    fn description_path(&self, hash: &str) -> PathBuf {
        self.dir.join(format!("{hash}.{}.json", env!("CARGO_PKG_VERSION")))
    }

    /// What the plugin with this content said about itself.
    pub(super) fn description(&self, hash: &str) -> Option<Description> {
        serde_json::from_slice(&fs::read(self.description_path(hash)).ok()?).ok()
    }

    /// Keeps a description. Failing to is no error: it will be asked again.
    pub(super) fn keep_description(&self, hash: &str, description: &Description) {
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix("new-").tempfile_in(&self.dir)?;
            file.write_all(&serde_json::to_vec(description)?)?;
            file.persist(self.description_path(hash)).map_err(|e| e.error)?;
            Ok(())
        };
        if let Err(e) = write() {
            tracing::debug!("a plugin's description is not kept in {}: {e}", self.dir.display());
        }
    }

    /// Removes what was not used for long.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let unused = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if unused.is_some_and(|t| t > KEEP) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Makes a folder that belongs to the current user alone, or checks that it does.
pub(super) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::symlink_metadata(dir)?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != me {
        return Err(io::Error::other("it is not a folder of the current user"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "others can get at it (mode {:04o}); run `chmod 700`",
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Copies all of `from` and returns the hash in hexadecimal, and the size.
fn hash_into(from: &mut impl Read, to: &mut impl Write) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut size = 0u64;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        size += n as u64;
        if size > MAX_BYTES {
            return Err(io::Error::other(format!("it grew beyond {MAX_BYTES} bytes")));
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
    }
    let hash = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((hash, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_can_read_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("cache");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let cache = Cache::open(Some(&dir)).unwrap();
        assert_ne!(cache.dir, dir);
        assert_eq!(fs::metadata(&cache.dir).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(Cache::open(Some(&dir)).unwrap().dir, dir);
    }

    #[test]
    fn a_copy_that_is_there_is_kept_unless_it_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&root.path().join("cache"))).unwrap();
        let file = root.path().join("libhost_plugin_x.so");
        fs::write(&file, "any content").unwrap();
        let inode = |copy: &Copy| fs::metadata(&copy.path).unwrap().ino();
        let first = cache.copy(&file, Trust::Named).unwrap();
        let kept = inode(&first);
        assert_eq!(inode(&cache.copy(&file, Trust::Named).unwrap()), kept, "a worker may be opening it");
        fs::set_permissions(&first.path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&first.path, "cut").unwrap();
        let again = cache.copy(&file, Trust::Named).unwrap();
        assert_eq!(fs::read_to_string(&again.path).unwrap(), "any content");
    }

    #[test]
    fn text_and_named_pipes_are_no_plugins() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&root.path().join("cache"))).unwrap();
        let file = root.path().join("libhost_plugin_x.so");
        fs::write(&file, "hello").unwrap();
        let error = cache.take(&file, Trust::Named).unwrap_err();
        assert!(error.to_string().contains("starts with `hello`"), "{error}");
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = cache.take(&file, Trust::Named).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let error = cache.take(&root.path().join("absent"), Trust::Named).unwrap_err();
        assert!(matches!(error, Cause::Unreadable(_)), "{error}");
    }
}
