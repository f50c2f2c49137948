//! A model's own Python code: whether there is any, whether it may be read, and which files it is made of.
//!
//! `auto_map` in `config.json` says that a model brings code. It is handed to a plugin only where the user trusts it, and
//! then nothing but the Python files of the model's folder; no code runs here.

use std::fs;
use std::path::{Path, PathBuf};

use plugin_api::ModelCode;
use serde_json::Value;

use super::settings::LoadError;

/// Most files.
const MAX_FILES: usize = 1000;
/// Largest file, as in the plugin `transformers`.
const MAX_FILE: u64 = 4 << 20;
/// Largest sum of files, as there.
const MAX_TOTAL: u64 = 64 << 20;
/// Folders below each other.
const MAX_DEPTH: usize = 8;
/// Files that an error lists.
const SHOWN: usize = 20;

/// Whether the configuration says that the model brings code.
pub(super) fn brings_code(config: &Value) -> bool {
    config["auto_map"].as_object().is_some_and(|map| !map.is_empty())
}

/// The Python files of the model's folder, within limits, relative to it and in order.
pub(super) fn files(dir: &Path) -> Result<ModelCode, LoadError> {
    let mut files = Vec::new();
    let mut total = 0;
    collect(dir, Path::new(""), 0, &mut files, &mut total)?;
    files.sort();
    Ok(ModelCode { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), files })
}

fn collect(
    root: &Path,
    below: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
    total: &mut u64,
) -> Result<(), LoadError> {
    let dir = root.join(below);
    let unreadable = |path: &Path, e: std::io::Error| LoadError::Setting(format!("{}: {e}", path.display()));
    let mut entries: Vec<_> = fs::read_dir(&dir).map_err(|e| unreadable(&dir, e))?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (name, path) = (entry.file_name(), entry.path());
        let hidden = name.to_string_lossy().starts_with('.');
        // Links to files are what the hub's cache is made of; links to folders are not followed.
        let kind = entry.file_type().map_err(|e| unreadable(&path, e))?;
        if kind.is_dir() && !hidden && depth < MAX_DEPTH {
            collect(root, &below.join(&name), depth + 1, files, total)?;
        }
        if kind.is_dir() || path.extension().is_none_or(|e| e != "py") {
            continue;
        }
        let meta = fs::metadata(&path).map_err(|e| unreadable(&path, e))?;
        if !meta.is_file() || !belongs(root, &path) {
            continue;
        }
        *total += meta.len();
        let too_much = match meta.len() {
            size if size > MAX_FILE => {
                format!("{} has {size} bytes, the limit for one file is {MAX_FILE}", path.display())
            }
            _ if *total > MAX_TOTAL => {
                format!("the Python files of {} have more than {MAX_TOTAL} bytes", root.display())
            }
            _ if files.len() == MAX_FILES => format!("{} has more than {MAX_FILES} Python files", root.display()),
            _ => {
                files.push(below.join(&name));
                continue;
            }
        };
        return Err(LoadError::Setting(format!(
            "the model's own code is too large: {too_much}; leave only what the model needs"
        )));
    }
    Ok(())
}

/// Whether a link leads to a file of the model: in its folder, or among the blobs of the hub's cache.
fn belongs(root: &Path, path: &Path) -> bool {
    let (Ok(root), Ok(path)) = (root.canonicalize(), path.canonicalize()) else { return false };
    let blobs = root.parent().and_then(Path::parent).map(|repo| repo.join("blobs"));
    path.starts_with(&root) || path.parent() == blobs.as_deref()
}

/// The error for a model whose code is needed and not trusted.
pub(super) fn refused(name: &str, config: &Value, files: &[String]) -> LoadError {
    let mut list: Vec<String> = files.iter().take(SHOWN).cloned().collect();
    match files.len() {
        0 => list.push("none are here; they are downloaded with the flag".to_owned()),
        n if n > SHOWN => list.push(format!("and {} more", n - SHOWN)),
        _ => {}
    }
    let classes: Vec<String> = config["auto_map"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(class, target)| Some(format!("{class} is {}", target.as_str().or_else(|| target[0].as_str())?)))
        .collect();
    LoadError::Setting(format!(
        "model {name} brings its own code (`auto_map` of config.json: {}), and no plugin builds it without: read its Python \
         files ({}), and if you trust them, pass --trust-remote-code; it runs in a sandbox, see docs/operations.md",
        classes.join(", "),
        list.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn code_is_what_auto_map_names() {
        assert!(brings_code(&json!({"auto_map": {"AutoConfig": "configuration_x.XConfig"}})));
        assert!(!brings_code(&json!({"auto_map": {}})) && !brings_code(&json!({})));
    }

    #[test]
    fn only_python_files_are_handed_over_also_those_of_subfolders() {
        let root = tempfile::tempdir().unwrap();
        for file in ["b.py", "a.txt", "sub/deep/c.py", "sub/__init__.py", ".git/hook.py", "model.safetensors"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x = 1\n").unwrap();
        }
        std::os::unix::fs::symlink(root.path().join("b.py"), root.path().join("a.py")).unwrap();
        std::os::unix::fs::symlink("/usr", root.path().join("usr")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("passwd.py")).unwrap();
        let code = files(root.path()).unwrap();
        let names: Vec<_> = code.files.iter().map(|f| f.display().to_string()).collect();
        assert_eq!(names, ["a.py", "b.py", "sub/__init__.py", "sub/deep/c.py"]);
    }

    #[test]
    fn too_much_code_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let sparse = |name: &str, size: u64| fs::File::create(root.path().join(name)).unwrap().set_len(size).unwrap();
        sparse("big.py", MAX_FILE + 1);
        let error = files(root.path()).unwrap_err().to_string();
        assert!(error.contains("big.py has 4194305 bytes, the limit for one file is 4194304"), "{error}");
        for i in 0..17 {
            sparse("big.py", 1);
            sparse(&format!("m{i}.py"), MAX_FILE);
        }
        let error = files(root.path()).unwrap_err().to_string();
        assert!(error.contains("have more than 67108864 bytes"), "{error}");
    }

    #[test]
    fn the_refusal_names_files_classes_and_the_flag() {
        let config = json!({"auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["t.T", null]}});
        let error = refused("m", &config, &["modeling_x.py".into()]).to_string();
        for words in
            ["AutoModelForCausalLM is modeling_x.X", "AutoTokenizer is t.T", "(modeling_x.py)", "--trust-remote-code"]
        {
            assert!(error.contains(words), "no `{words}` in {error}");
        }
    }
}
