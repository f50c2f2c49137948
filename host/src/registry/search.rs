//! Where plugins are looked for, and which folders and files are trusted.
//!
//! A plugin runs with the server's rights until its sandbox is up, so a file counts only if nobody but root and the current
//! user could have put it there. Reads folders, never the plugins themselves.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where a folder of the search path comes from; explicit ones must be usable, others may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--plugins-dir`.
    Explicit,
    /// `HOST_PLUGINS_PATH` or one of the usual places.
    Implicit,
}

/// A folder of the search path and what came of it.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The folder.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
    /// Why it is not used; `None`: it is.
    pub refused: Option<String>,
}

/// The folders that are searched besides `--plugins-dir`: `HOST_PLUGINS_PATH`, the program's own folder with its `plugins` and
/// `../lib/host/plugins`, the user's data folder, and `/usr/lib/host/plugins`.
pub fn implicit_dirs() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let mut dirs: Vec<PathBuf> = Vec::new();
    if let Some(list) = var("HOST_PLUGINS_PATH") {
        dirs.extend(std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()));
    }
    if let Some(own) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        dirs.extend([own.to_owned(), own.join("plugins"), own.join("../lib/host/plugins")]);
    }
    // A relative XDG path is invalid by its specification.
    let data = var("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || var("HOME").map(|h| PathBuf::from(h).join(".local/share"));
    dirs.extend(data.or_else(home).map(|d| d.join("host/plugins")));
    dirs.push(PathBuf::from("/usr/lib/host/plugins"));
    dirs
}

/// Looks at every folder of the search path, in order, each once. Missing implicit folders are left out.
pub(super) fn directories(explicit: &[PathBuf], implicit: &[PathBuf]) -> Vec<Directory> {
    let named = explicit.iter().map(|d| (d, Origin::Explicit));
    let usual = implicit.iter().map(|d| (d, Origin::Implicit));
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (path, origin) in named.chain(usual) {
        let (path, refused) = match fs::canonicalize(path) {
            Ok(real) => {
                let refused = distrust_directory(&real);
                (real, refused)
            }
            Err(_) if origin == Origin::Implicit => continue,
            Err(e) => (path.clone(), Some(format!("cannot be opened: {e}"))),
        };
        if seen.insert(path.clone()) {
            out.push(Directory { path, origin, refused });
        }
    }
    out
}

/// Plugin files of a folder, sorted by name.
pub(super) fn plugin_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_plugin_name(&entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file is called like a plugin: `libhost_plugin_*.so` (`.dylib`, `.dll` without `lib`) of this system.
pub(super) fn is_plugin_name(name: &str) -> bool {
    let stem =
        name.strip_prefix(std::env::consts::DLL_PREFIX).and_then(|n| n.strip_suffix(std::env::consts::DLL_SUFFIX));
    stem.is_some_and(|s| s.strip_prefix("host_plugin_").is_some_and(|rest| !rest.is_empty()))
}

/// Why a folder is not to be trusted.
fn distrust_directory(path: &Path) -> Option<String> {
    let meta = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => return Some("is not a folder".to_owned()),
        Err(e) => return Some(format!("cannot be opened: {e}")),
    };
    if let Some(reason) = foreign_owner(&meta) {
        return Some(reason);
    }
    if let Some(reason) = writable_by_others(&meta, path) {
        return Some(reason);
    }
    // Who may rename a folder above may put another in its place.
    path.ancestors().skip(1).find_map(|above| {
        let meta = fs::metadata(above).ok()?;
        writable_by_others(&meta, above).map(|reason| format!("its parent {} {reason}", above.display()))
    })
}

/// Why a plugin file is not to be trusted, from the metadata of the opened file.
pub(super) fn distrust_file(meta: &Metadata, path: &Path) -> Option<String> {
    foreign_owner(meta).or_else(|| writable_by_others(meta, path))
}

fn foreign_owner(meta: &Metadata) -> Option<String> {
    let me = rustix::process::geteuid().as_raw();
    let owner = meta.uid();
    (owner != 0 && owner != me)
        .then(|| format!("belongs to user {owner}, neither to root nor to the current user ({me})"))
}

/// The sticky bit keeps others from replacing what is in a folder; what they add themselves fails the check of its owner.
fn writable_by_others(meta: &Metadata, path: &Path) -> Option<String> {
    let mode = meta.permissions().mode();
    let sticky = meta.is_dir() && mode & 0o1000 != 0;
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let private = || is_private_group(meta.gid(), meta.uid(), &read("/etc/passwd"), &read("/etc/group"));
    let who = match mode & 0o022 {
        0o020 if private() => return None,
        0o022 => "its group and everybody",
        0o020 => "its group",
        0o002 => "everybody",
        _ => return None,
    };
    (!sticky).then(|| {
        format!("can be written to by {who} (mode {:04o}); run `chmod go-w {}`", mode & 0o7777, path.display())
    })
}

/// Whether nobody but its owner is in the group: many systems give every user a group of their own and let it write
/// what the user makes. Accounts that are not in these files count as unknown, and so as others.
fn is_private_group(gid: u32, owner: u32, passwd: &str, group: &str) -> bool {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |field: Option<&String>| field.and_then(|f| f.parse::<u32>().ok());
    let users: Vec<_> = passwd.lines().map(fields).filter(|f| number(f.get(3)) == Some(gid)).collect();
    let groups: Vec<_> = group.lines().map(fields).filter(|f| number(f.get(2)) == Some(gid)).collect();
    let ([user], [group]) = (users.as_slice(), groups.as_slice()) else { return false };
    let members = group.get(3).map_or("", String::as_str);
    owner != 0
        && number(user.get(2)) == Some(owner)
        && (members.is_empty() || Some(members) == user.first().map(|n| n.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn plugin_names() {
        let name = |stem: &str| format!("{}{stem}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        assert!(is_plugin_name(&name("host_plugin_llama")));
        for no in [name("host_plugin_"), name("other"), name("host_plugin_x") + ".bak", "host_plugin_x".to_owned()] {
            assert!(!is_plugin_name(&no), "{no}");
        }
    }

    #[test]
    fn folders_that_others_can_write_to_are_refused_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap().join("plugins");
        fs::create_dir(&dir).unwrap();
        for (mode, expected) in [
            (0o755, None),
            (0o700, None),
            (0o1777, None),
            (0o775, Some("its group (mode 0775)")),
            (0o757, Some("everybody (mode 0757)")),
            (0o777, Some("its group and everybody (mode 0777)")),
        ] {
            chmod(&dir, mode);
            let refused = directories(std::slice::from_ref(&dir), &[])[0].refused.clone();
            match expected {
                None => assert_eq!(refused, None, "{mode:o}"),
                Some(text) => assert!(refused.as_ref().is_some_and(|r| r.contains(text)), "{mode:o}: {refused:?}"),
            }
        }
    }

    #[test]
    fn a_group_of_ones_own_is_not_others() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:50::/:/bin/sh\n";
        let group = |members: &str| format!("root:x:0:\nstaff:x:50:ann\nann:x:1000:{members}\n");
        assert!(is_private_group(1000, 1000, passwd, &group("")));
        assert!(is_private_group(1000, 1000, passwd, &group("ann")));
        assert!(!is_private_group(1000, 1000, passwd, &group("ann,bob")), "a second member");
        assert!(!is_private_group(50, 1000, passwd, &group("")), "somebody else's group");
        assert!(!is_private_group(1000, 1000, "", ""), "unknown");
        let shared = format!("{passwd}eve:x:1002:1000::/:/bin/sh\n");
        assert!(!is_private_group(1000, 1000, &shared, &group("")), "a second user with it");
    }

    #[test]
    fn a_writable_parent_is_refused_too() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().canonicalize().unwrap().join("open");
        let dir = parent.join("plugins");
        fs::create_dir_all(&dir).unwrap();
        chmod(&dir, 0o755);
        chmod(&parent, 0o777);
        let refused = directories(&[dir], &[])[0].refused.clone().unwrap();
        assert!(refused.contains("its parent") && refused.contains("everybody"), "{refused}");
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can give a file away
        }
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        fs::write(&file, "x").unwrap();
        chmod(&file, 0o644);
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        let reason = distrust_file(&fs::metadata(&file).unwrap(), &file).unwrap();
        assert!(reason.contains("belongs to user 12345"), "{reason}");
    }

    #[test]
    fn order_is_kept_and_each_folder_comes_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (a, b) = (root.join("a"), root.join("b"));
        for d in [&a, &b] {
            fs::create_dir(d).unwrap();
            chmod(d, 0o755);
        }
        let missing = root.join("missing");
        let found = directories(std::slice::from_ref(&b), &[a.clone(), b.join("../b"), missing.clone()]);
        assert_eq!(found.iter().map(|d| d.path.clone()).collect::<Vec<_>>(), [b, a]);
        let found = directories(std::slice::from_ref(&missing), &[]);
        assert!(found[0].refused.as_ref().is_some_and(|r| r.contains("cannot be opened")));
    }
}
