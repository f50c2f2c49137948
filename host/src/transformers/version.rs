//! Which version a package folder holds, from its text, and which versions are known to work.

use std::fs;
use std::path::Path;

/// The oldest and the newest version that the plugin `transformers` was tested with; patch releases in between count.
pub const TESTED: (&str, &str) = ("5.0", "5.23");

/// Largest file that is read for a version.
const MAX_TEXT: u64 = 4 << 20;

/// The version of the package in this folder; `Err`: why it is none.
pub fn read_version(dir: &Path) -> Result<String, String> {
    let init = dir.join("__init__.py");
    let size = fs::metadata(&init).map_err(|_| "it has no __init__.py".to_owned())?.len();
    if size > MAX_TEXT {
        return Err(format!("its __init__.py has {size} bytes"));
    }
    if !dir.join("models").is_dir() {
        return Err("it has no folder `models`".to_owned());
    }
    let text = fs::read_to_string(&init).map_err(|e| format!("its __init__.py cannot be read: {e}"))?;
    let assigned = text.lines().find_map(|line| line.strip_prefix("__version__")?.trim_start().strip_prefix('='));
    let quoted = assigned.map(|value| value.trim().trim_matches(['"', '\'']).to_owned());
    quoted.filter(|v| parts(v).is_some()).or_else(|| installed_version(dir)).ok_or_else(|| {
        "neither its __init__.py (`__version__ = \"...\"`) nor a transformers-*.dist-info beside it tells the version".to_owned()
    })
}

/// From the name of the `dist-info` folder beside the package.
fn installed_version(dir: &Path) -> Option<String> {
    let mut versions: Vec<String> = fs::read_dir(dir.parent()?)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("transformers-")?.strip_suffix(".dist-info")?.to_owned())
        })
        .filter(|version| parts(version).is_some())
        .collect();
    versions.sort_by_key(|version| parts(version));
    versions.pop()
}

/// Major and minor version.
fn parts(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

/// Whether it is of the major version that was tested: others are laid out in other ways.
pub(super) fn same_major(version: &str) -> bool {
    parts(version).map(|(major, _)| major) == parts(TESTED.0).map(|(major, _)| major)
}

/// What is wrong with a version; `None`: it was tested.
pub(super) fn warning(version: &str) -> Option<String> {
    let (found, oldest, newest) = (parts(version)?, parts(TESTED.0)?, parts(TESTED.1)?);
    let age = match found {
        found if found < oldest => "older",
        found if found > newest => "newer",
        _ => return None,
    };
    Some(format!("{age} than the versions that host was tested with ({} to {})", TESTED.0, TESTED.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outside_the_tested_range_are_named() {
        for version in ["5.0.0", "5.0", "5.0.0rc1", "5.23.0", "5.23.9", "5.7.dev0"] {
            assert_eq!(warning(version), None, "{version}");
        }
        assert!(warning("4.57.1").is_some_and(|w| w.starts_with("older than")));
        assert!(warning("5.24.0").is_some_and(|w| w.starts_with("newer than")));
        assert!(same_major("5.99.1") && !same_major("4.57.1") && !same_major("x"));
    }

    #[test]
    fn the_version_is_read_from_text() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("transformers");
        fs::create_dir_all(dir.join("models")).unwrap();
        assert_eq!(read_version(&dir).unwrap_err(), "it has no __init__.py");
        fs::write(dir.join("__init__.py"), "# words\n__version__ = \"5.3.0.dev0\"\n").unwrap();
        assert_eq!(read_version(&dir).unwrap(), "5.3.0.dev0");
        fs::write(dir.join("__init__.py"), "from .version import __version__\n").unwrap();
        assert!(read_version(&dir).unwrap_err().contains("dist-info"));
        for folder in ["transformers-5.2.0.dist-info", "transformers-5.11.1.dist-info", "other-9.0.dist-info"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        assert_eq!(read_version(&dir).unwrap(), "5.11.1");
    }
}
