//! Unpacks a wheel into the cache: only `transformers/**.py`, within limits, under no name but its own, whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{PackageError, Pin};

/// Largest wheel.
pub(super) const MAX_WHEEL: u64 = 256 << 20;
/// Most entries of a wheel.
const MAX_ENTRIES: usize = 50_000;
/// Largest file of it.
const MAX_FILE: u64 = 16 << 20;
/// Largest sum of files.
const MAX_TOTAL: u64 = 512 << 20;

/// Where the pinned wheel is unpacked.
pub(super) fn place(cache: &Path, pin: &Pin) -> PathBuf {
    cache.join(format!("{}-{}", pin.version, pin.sha256.get(..16).unwrap_or(&pin.sha256)))
}

/// Checks the file against the pin and unpacks it, unless that was done before. Returns the folder that holds the package.
pub(super) fn install(wheel: &Path, cache: &Path, pin: &Pin) -> Result<PathBuf, PackageError> {
    let fail = |message: String| PackageError::Wheel { path: wheel.to_owned(), message };
    let unreadable = |e: io::Error| fail(format!("cannot be read: {e}"));
    let mut file = File::open(wheel).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() || meta.len() > MAX_WHEEL {
        return Err(fail(format!("is not a wheel: a file of at most {} MiB is expected", MAX_WHEEL >> 20)));
    }
    // Hashed and unpacked from memory: the file cannot change in between.
    let mut bytes = Vec::new();
    (&mut file).take(MAX_WHEEL).read_to_end(&mut bytes).map_err(unreadable)?;
    let got = sha256(&bytes);
    if got != pin.sha256 {
        let (expected, file) = (pin.sha256.clone(), pin.file.clone());
        return Err(PackageError::WrongHash { what: wheel.display().to_string(), got, expected, file });
    }
    unpack(&bytes, cache, pin).map_err(|e| match e {
        Failed::Wheel(message) => fail(message),
        Failed::Cache(e) => e,
    })
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What went wrong, the wheel or the folder.
enum Failed {
    Wheel(String),
    Cache(PackageError),
}

fn cannot(path: &Path) -> impl FnOnce(io::Error) -> Failed + use<> {
    let fail = PackageError::cache(path);
    move |e| Failed::Cache(fail(e))
}

/// Unpacks into a temporary folder beside the target and renames that: the target is whole if it is there.
fn unpack(bytes: &[u8], cache: &Path, pin: &Pin) -> Result<PathBuf, Failed> {
    let target = place(cache, pin);
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(cannot(cache))?;
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(cache).map_err(cannot(cache))?;
    let mut archive =
        zip::ZipArchive::new(io::Cursor::new(bytes)).map_err(|e| Failed::Wheel(format!("is not a wheel: {e}")))?;
    if archive.len() > MAX_ENTRIES {
        return Err(Failed::Wheel(format!("has {} entries, the limit is {MAX_ENTRIES}", archive.len())));
    }
    let mut total = 0;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|e| Failed::Wheel(format!("entry {i}: {e}")))?;
        let name = entry.name().map_err(|e| Failed::Wheel(format!("entry {i}: {e}")))?.into_owned();
        let Some(name) = wanted(&name, entry.is_symlink()).map_err(Failed::Wheel)? else { continue };
        let mut content = Vec::new();
        let read = (&mut entry).take(MAX_FILE + 1).read_to_end(&mut content);
        read.map_err(|e| Failed::Wheel(format!("{}: {e}", name.display())))?;
        total += content.len() as u64;
        if content.len() as u64 > MAX_FILE || total > MAX_TOTAL {
            return Err(Failed::Wheel(format!(
                "{}: more than {} MiB in a file or {} MiB in all",
                name.display(),
                MAX_FILE >> 20,
                MAX_TOTAL >> 20
            )));
        }
        let path = new.path().join(name);
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(cache))?;
            File::create_new(&path)?.write_all(&content)
        };
        write().map_err(cannot(&path))?;
    }
    if !new.path().join("transformers/__init__.py").is_file() {
        return Err(Failed::Wheel("holds no transformers/__init__.py".to_owned()));
    }
    settle(new, &target).map_err(cannot(&target))?;
    Ok(target)
}

/// The name of an entry that is unpacked: Python files of the package. A name that leads elsewhere is an error.
fn wanted(name: &str, is_link: bool) -> Result<Option<PathBuf>, String> {
    let path = Path::new(name);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_))) && !name.contains(['\\', '\0']);
    if !plain || is_link {
        return Err(format!("has an entry that leads out of its folder: `{}`", name.escape_default()));
    }
    let is_python = path.starts_with("transformers") && path.extension().is_some_and(|e| e == "py");
    Ok(is_python.then(|| path.to_owned()))
}

/// Gives the folder its name. Another process may have been first: then there is nothing to do.
fn settle(new: tempfile::TempDir, target: &Path) -> io::Result<()> {
    // Otherwise the name could outlive a power cut that the content does not.
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(File::open(new.path())?)?;
    match fs::rename(new.path(), target) {
        Ok(()) => {
            let _ = new.keep();
            Ok(())
        }
        Err(_) if target.join("transformers/__init__.py").is_file() => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_python_files_of_the_package_are_unpacked() {
        let name = |name: &str| wanted(name, false).unwrap().map(|p| p.display().to_string());
        assert_eq!(name("transformers/models/a/b.py").as_deref(), Some("transformers/models/a/b.py"));
        for other in ["transformers/a.so", "transformers-5.dist-info/METADATA", "evil/a.py", "transformers/"] {
            assert_eq!(name(other), None, "{other}");
        }
        for evil in ["../a.py", "/etc/a.py", "transformers/../../a.py", "transformers\\..\\a.py"] {
            assert!(wanted(evil, false).unwrap_err().contains("leads out"), "{evil}");
        }
        assert!(wanted("transformers/a.py", true).is_err());
    }
}
