//! Where Python keeps packages, found without running it: the active virtualenv first, then the user's folder, then the
//! prefixes of every `python3` in `PATH`, then the system's usual ones. Editable installs (`.pth` files) are not followed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Prefixes of a system's own Python.
const SYSTEM: [&str; 3] = ["/usr/local", "/usr", "/opt/homebrew"];

/// The site-packages folders of this machine, each once, in order.
pub fn site_packages() -> Vec<PathBuf> {
    let system: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    places(&|name| std::env::var_os(name).filter(|value| !value.is_empty()), &system)
}

fn places(variable: &dyn Fn(&str) -> Option<OsString>, system: &[PathBuf]) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from);
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| folder(name)).collect();
    prefixes.extend(folder("PYTHONUSERBASE").or_else(|| folder("HOME").map(|home| home.join(".local"))));
    let path = variable("PATH").unwrap_or_default();
    for program in std::env::split_paths(&path).map(|dir| dir.join("python3")).filter(|program| program.is_file()) {
        // A virtualenv's `python3` is a link: first where it lies, then where it leads.
        let real = program.canonicalize().ok();
        let above = |program: &Path| program.parent().and_then(Path::parent).map(Path::to_owned);
        prefixes.extend(above(&program));
        prefixes.extend(real.as_deref().and_then(above));
    }
    prefixes.extend(system.iter().cloned());
    let mut found: Vec<PathBuf> = Vec::new();
    for place in prefixes.iter().flat_map(|prefix| of_prefix(prefix)) {
        let place = place.canonicalize().unwrap_or(place);
        if !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

/// The folders below one prefix, the newest Python first.
fn of_prefix(prefix: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for lib in ["lib", "lib64"] {
        for entry in fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(version) = name.to_str().and_then(|name| name.strip_prefix("python3")) else { continue };
            // Debian's `python3` serves every minor version, and comes last.
            let minor = version.strip_prefix('.').map_or(Some(0), |minor| minor.trim_end_matches('t').parse().ok());
            versions.extend(minor.map(|minor| (minor, entry.path())));
        }
    }
    versions.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let both = |(_, dir): (u32, PathBuf)| [dir.join("site-packages"), dir.join("dist-packages")];
    versions.into_iter().flat_map(both).filter(|dir| dir.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtualenv_comes_first_and_each_folder_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(root.join(path)).unwrap();
            root.join(path)
        };
        let venv = make("venv/lib/python3.12/site-packages");
        let user = make("home/.local/lib/python3.9/site-packages");
        let newer = make("home/.local/lib/python3.13/site-packages");
        make("home/.local/lib/python2.7/site-packages");
        let system = make("usr/lib/python3/dist-packages");
        let local = make("usr/lib/python3.11/dist-packages");
        make("opt/bin");
        let opt = make("opt/lib/python3.10/site-packages");
        fs::write(root.join("opt/bin/python3"), "").unwrap();
        make("venv/bin");
        std::os::unix::fs::symlink(root.join("opt/bin/python3"), root.join("venv/bin/python3")).unwrap();
        let variable = |name: &str| match name {
            "VIRTUAL_ENV" => Some(root.join("venv").into_os_string()),
            "HOME" => Some(root.join("home").into_os_string()),
            "PATH" => std::env::join_paths([root.join("venv/bin"), root.join("nowhere")]).ok(),
            _ => None,
        };
        assert_eq!(places(&variable, &[root.join("usr")]), [venv, newer, user, opt, local, system]);
        assert!(places(&|_| None, &[]).is_empty());
    }
}
