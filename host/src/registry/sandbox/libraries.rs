//! Which files the dynamic linker will open for a plugin: the libraries that it names, and that these name, unless the worker
//! has loaded them itself. Only the system's own folders are looked into. A file that cannot be read is left out: the
//! linker's error says so.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where libraries lie besides the folders of those that are loaded.
const FOLDERS: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];
/// Most libraries of one plugin.
const MOST: usize = 256;

/// The files that are opened beside the plugin's own.
pub(super) fn needed(plugin: &Path) -> Vec<PathBuf> {
    let loaded = loaded();
    let known: BTreeSet<String> = loaded.iter().filter_map(|path| name(path)).collect();
    let folders: BTreeSet<PathBuf> =
        loaded.iter().filter_map(|p| p.parent()).map(Path::to_owned).chain(FOLDERS.map(PathBuf::from)).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    let mut seen = known;
    let mut names = named_by(plugin);
    while let Some(wanted) = names.pop() {
        // A name with a slash is a path of the plugin's choice.
        if wanted.contains('/') || files.len() == MOST || !seen.insert(wanted.clone()) {
            continue;
        }
        if let Some(file) = folders.iter().map(|dir| dir.join(&wanted)).find(|file| file.is_file()) {
            names.extend(named_by(&file));
            files.push(file);
        }
    }
    files
}

/// The libraries that this process has mapped.
fn loaded() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    paths.filter(|path| name(path).is_some_and(|n| n.contains(".so"))).collect()
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The names in a library's dynamic section (`DT_NEEDED`); of a file of another form, none.
fn named_by(file: &Path) -> Vec<String> {
    File::open(file).ok().and_then(|file| read(&file)).unwrap_or_default()
}

const LOAD: u64 = 1;
const DYNAMIC: u64 = 2;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
const STRINGS_SIZE: u64 = 10;
/// Largest table that is read.
const MAX_TABLE: u64 = 16 << 20;

/// Reads an ELF64 file of this byte order. Its table of segments says where the dynamic section is, that where the names are.
fn read(file: &File) -> Option<Vec<String>> {
    let head = bytes(file, 0, 64)?;
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let count = word(&head, 56)? & 0xffff;
    let table = bytes(file, word(&head, 32)?, count * 56)?;
    let segments: Vec<[u64; 4]> = table
        .chunks_exact(56)
        .filter_map(|s| Some([word(s, 0)? & 0xffff_ffff, word(s, 8)?, word(s, 16)?, word(s, 32)?]))
        .collect();
    let [_, at, _, size] = *segments.iter().find(|[kind, ..]| *kind == DYNAMIC)?;
    let section = bytes(file, at, size)?;
    let entries: Vec<(u64, u64)> =
        section.chunks_exact(16).filter_map(|e| Some((word(e, 0)?, word(e, 8)?))).take_while(|e| e.0 != 0).collect();
    let value = |tag| entries.iter().find(|e| e.0 == tag).map(|e| e.1);
    let address = value(STRINGS)?;
    let [_, offset, base, _] = *segments
        .iter()
        .find(|[kind, _, base, size]| *kind == LOAD && (*base..base.saturating_add(*size)).contains(&address))?;
    let strings = bytes(file, offset.checked_add(address - base)?, value(STRINGS_SIZE)?)?;
    let text = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|&b| b == 0)?;
        String::from_utf8(rest[..end].to_vec()).ok()
    };
    Some(entries.iter().filter(|e| e.0 == NEEDED).filter_map(|e| text(e.1)).collect())
}

fn bytes(file: &File, at: u64, size: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).ok().filter(|_| size <= MAX_TABLE)?];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// A little-endian word; shorter fields are cut out of it.
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_this_program_are_read_and_loaded() {
        let names = named_by(&std::env::current_exe().unwrap());
        assert!(names.iter().any(|n| n.starts_with("libc.")), "{names:?}");
        // All of them are mapped, so that nothing is left to open.
        assert_eq!(needed(&std::env::current_exe().unwrap()), Vec::<PathBuf>::new());
        assert!(named_by(Path::new("/etc/passwd")).is_empty() && named_by(Path::new("/nonexistent")).is_empty());
    }
}
