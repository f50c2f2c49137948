//! From a model's name to a folder: a local folder, the hub cache, or a download.
//!
//! It decides and reads `config.json`; bytes are fetched in `download`. The cache has the layout of Hugging Face's tools
//! (`models--org--name/{blobs,refs,snapshots}`), so models that those have fetched are used and the other way round.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{HubError, HubOptions};

/// The single-file checkpoint.
pub(super) const SINGLE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model on disk.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The model as the user wrote it.
    pub name: String,
    /// The folder with its files.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// The commit, for a model of the hub.
    pub revision: Option<String>,
    /// Names of the Python files that the folder or repository lists. They are not downloaded.
    pub python_files: Vec<String>,
}

/// Finds the model, downloading it if need be.
///
/// An existing folder wins; anything that looks like a path must be one; the rest is a repository id. May be called
/// from any thread, also from within an async runtime (it blocks).
pub fn resolve(model: &str, options: &HubOptions) -> Result<ModelFiles, HubError> {
    let path = expand_home(model);
    if path.is_dir() {
        return local(model, &path, None);
    }
    if path.exists() {
        return Err(not_a_model(model, "it is a file, neither a folder nor a GGUF file (*.gguf)".into()));
    }
    if let Err(reason) = check_repo_id(model) {
        let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        let missing = if is_gguf { "file" } else { "folder" };
        return Err(not_a_model(model, format!("there is no such {missing}, and {reason}")));
    }
    if options.revision().split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(not_a_model(model, format!("\"{}\" is not a revision", options.revision())));
    }
    if options.offline {
        let advice = "HF_HUB_OFFLINE is set: unset it to download the model, or give the path of a folder";
        return cached(model, options, advice);
    }
    online(model, options)
}

#[cfg(feature = "hub")]
fn online(model: &str, options: &HubOptions) -> Result<ModelFiles, HubError> {
    match super::download::download(model, options) {
        Ok(snapshot) => {
            let mut files = local(model, &snapshot.dir, Some(snapshot.commit))?;
            files.python_files = snapshot.python_files;
            Ok(files)
        }
        // What was fetched before still works while the hub is down.
        Err(error) if error.is_outage() => match cached(model, options, "") {
            Ok(files) => {
                tracing::warn!(%error, model, "the hub cannot be asked for news: using the cached copy");
                Ok(files)
            }
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "hub"))]
fn online(model: &str, options: &HubOptions) -> Result<ModelFiles, HubError> {
    let advice = "this program was built without downloads (cargo feature \"hub\"): fetch the model by other means";
    cached(model, options, advice)
}

/// The model in a folder.
fn local(name: &str, dir: &Path, revision: Option<String>) -> Result<ModelFiles, HubError> {
    let config = dir.join("config.json");
    if !config.is_file() {
        return Err(not_a_model(name, format!("{} has no config.json", dir.display())));
    }
    let mut python_files: Vec<String> = fs::read_dir(dir)
        .map_err(HubError::io(dir))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|file| file.ends_with(".py"))
        .collect();
    python_files.sort();
    Ok(ModelFiles { name: name.into(), dir: dir.into(), config: read_config(&config)?, revision, python_files })
}

/// The model in the cache, if all of it is there.
fn cached(repo: &str, options: &HubOptions, advice: &str) -> Result<ModelFiles, HubError> {
    let revision = options.revision();
    let missing = |reason: String| HubError::NotCached {
        repo: repo.into(),
        revision: revision.into(),
        cache: options.cache_dir.clone(),
        reason,
        advice: advice.into(),
    };
    let folder = repo_folder(&options.cache_dir, repo);
    if !folder.is_dir() {
        return Err(missing(format!("no folder {}", folder_name(repo))));
    }
    let commit = if is_commit(revision) {
        revision.to_owned()
    } else {
        let file = folder.join("refs").join(revision);
        let text = fs::read_to_string(&file).map_err(|_| missing(format!("no ref \"{revision}\"")))?;
        let commit = text.trim().to_owned();
        if !is_plain_name(&commit) {
            return Err(missing(format!("the ref \"{revision}\" does not hold a commit")));
        }
        commit
    };
    let dir = folder.join("snapshots").join(&commit);
    let absent = absent_files(&dir)?;
    if !absent.is_empty() {
        return Err(missing(format!("snapshot {commit} lacks {}", absent.join(", "))));
    }
    local(repo, &dir, Some(commit))
}

/// The files that a usable snapshot must have and this one has not.
fn absent_files(dir: &Path) -> Result<Vec<String>, HubError> {
    let lacks = |file: &&str| !dir.join(file).is_file();
    let mut absent: Vec<String> = ["config.json"].iter().filter(|f| lacks(f)).map(ToString::to_string).collect();
    if dir.join(SINGLE).is_file() {
        return Ok(absent);
    }
    if !dir.join(INDEX).is_file() {
        absent.push(SINGLE.into());
        return Ok(absent);
    }
    let shards = shards_of_index(&dir.join(INDEX))?;
    absent.extend(shards.into_iter().filter(|file| lacks(&file.as_str())));
    Ok(absent)
}

/// The file names in `weight_map`, each once, in order of name.
pub(super) fn shards_of_index(path: &Path) -> Result<Vec<String>, HubError> {
    let mut shards: Vec<String> = read_index(path)?.into_iter().map(|(_, file)| file).collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}

/// Tensor names and the files that hold them.
pub(super) fn read_index(path: &Path) -> Result<Vec<(String, String)>, HubError> {
    let wrong = |message: String| HubError::File { file: path.into(), message };
    let text = fs::read(path).map_err(HubError::io(path))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|e| HubError::Json { path: path.into(), message: format!("not valid JSON: {e}") })?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("\"weight_map\" must be an object of tensor names and file names".into()))?;
    if map.is_empty() {
        return Err(wrong("\"weight_map\" is empty".into()));
    }
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().filter(|f| is_plain_name(f) && f.ends_with(".safetensors"));
            let file = file.ok_or_else(|| HubError::Tensor {
                file: path.into(),
                tensor: tensor.clone(),
                message: format!(
                    "must map to the name of a .safetensors file in the same folder, not to {}",
                    map[tensor]
                ),
            })?;
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// `config.json`. Python writes the floats `Infinity`, `-Infinity` and `NaN`, which JSON does not have; they become
/// `{"__float__": "Infinity"}`, as newer versions of transformers write them.
fn read_config(path: &Path) -> Result<Value, HubError> {
    let wrong = |message: String| HubError::Json { path: path.into(), message };
    let bytes = fs::read(path).map_err(HubError::io(path))?;
    let text = String::from_utf8(bytes).map_err(|e| wrong(format!("not UTF-8 text: {}", e.utf8_error())))?;
    let parsed = serde_json::from_str(&text).or_else(|error| {
        let replaced = name_python_floats(&text);
        if replaced == text { Err(error) } else { serde_json::from_str(&replaced) }
    });
    let config: Value = parsed.map_err(|e| wrong(format!("not valid JSON: {e}")))?;
    if !config.is_object() {
        return Err(wrong("it must hold a JSON object".into()));
    }
    Ok(config)
}

/// Replaces Python's bare float words outside of strings.
fn name_python_floats(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.map_or(rest.len(), |at| at + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if let Some(word) = ["-Infinity", "Infinity", "NaN"].iter().find(|word| rest.starts_with(**word)) {
            out.push_str(&format!("{{\"__float__\": \"{word}\"}}"));
            rest = &rest[word.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// The repository's folder in the cache.
pub(super) fn repo_folder(cache: &Path, repo: &str) -> PathBuf {
    cache.join(folder_name(repo))
}

fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// A full commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file name that stays in its folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}

fn check_repo_id(model: &str) -> Result<(), String> {
    let parts: Vec<&str> = model.split('/').collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let well_formed = |part: &&str| {
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with(['.', '-']) && !part.ends_with(['.', '-'])
    };
    if parts.len() > 2 || !parts.iter().all(well_formed) || model.contains("..") || model.contains("--") {
        return Err("it is not a repository id either".into());
    }
    Ok(())
}

fn expand_home(model: &str) -> PathBuf {
    match (model.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(model),
    }
}

fn not_a_model(model: &str, reason: String) -> HubError {
    HubError::NotAModel { model: model.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn options(cache: &Path) -> HubOptions {
        HubOptions {
            revision: None,
            cache_dir: cache.into(),
            python_files: false,
            offline: true,
            token: None,
            endpoint: "http://127.0.0.1:9".into(),
            progress: false,
            timeout: Duration::from_secs(5),
            retries: 0,
            retry_delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_folder_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        fs::write(dir.path().join("modeling_x.py"), "").unwrap();
        let name = dir.path().to_str().unwrap();
        let files = resolve(name, &options(dir.path())).unwrap();
        assert_eq!(files.name, name);
        assert_eq!(files.config["model_type"], "llama");
        assert_eq!(files.python_files, ["modeling_x.py"]);
        assert_eq!(files.revision, None);
    }

    #[test]
    fn wrong_folders_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap();
        let error = resolve(name, &options(dir.path())).unwrap_err().to_string();
        assert!(error.contains("has no config.json"), "{error}");

        let config = dir.path().join("config.json");
        for (text, part) in [("{\"a\": ", "not valid JSON"), ("[]", "must hold a JSON object"), ("", "not valid JSON")]
        {
            fs::write(&config, text).unwrap();
            let error = resolve(name, &options(dir.path())).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("config.json"), "{error}");
        }

        let error = resolve(config.to_str().unwrap(), &options(dir.path())).unwrap_err().to_string();
        assert!(error.contains("it is a file, neither a folder nor a GGUF file"), "{error}");
        let error = resolve("./no/model.gguf", &options(dir.path())).unwrap_err().to_string();
        assert!(error.contains("\"./no/model.gguf\": there is no such file"), "{error}");
        for path in ["./nothing/here", "/no/such/folder", "a/b/c", "org/../x", "org/na me", "-x/y"] {
            let error = resolve(path, &options(dir.path())).unwrap_err().to_string();
            assert!(error.contains("no such folder") && error.contains(path), "{error}");
        }
    }

    #[test]
    fn python_floats_in_config_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"limit": [0.0, Infinity], "low": -Infinity, "none": NaN, "text": "Infinity \" NaN"}"#;
        fs::write(dir.path().join("config.json"), text).unwrap();
        let config = resolve(dir.path().to_str().unwrap(), &options(dir.path())).unwrap().config;
        assert_eq!(config["limit"][1]["__float__"], "Infinity");
        assert_eq!(config["low"]["__float__"], "-Infinity");
        assert_eq!(config["none"]["__float__"], "NaN");
        assert_eq!(config["text"], "Infinity \" NaN");
    }

    #[test]
    fn offline_needs_a_complete_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let miss = |part: &str| {
            let error = resolve("org/name", &options(cache.path())).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("HF_HUB_OFFLINE") && error.contains("org/name"), "{error}");
        };
        miss("no folder models--org--name");
        let folder = cache.path().join("models--org--name");
        let snapshot = folder.join("snapshots/0123456789012345678901234567890123456789");
        fs::create_dir_all(&snapshot).unwrap();
        miss("no ref \"main\"");
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), "../../../elsewhere").unwrap();
        miss("does not hold a commit");
        fs::write(folder.join("refs/main"), "0123456789012345678901234567890123456789\n").unwrap();
        miss("lacks config.json, model.safetensors");
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        fs::write(snapshot.join(INDEX), r#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#).unwrap();
        fs::write(snapshot.join("x.safetensors"), "").unwrap();
        miss("lacks y.safetensors");
        fs::write(snapshot.join("y.safetensors"), "").unwrap();
        let files = resolve("org/name", &options(cache.path())).unwrap();
        assert_eq!(files.dir, snapshot);
        assert_eq!(files.revision.as_deref(), Some("0123456789012345678901234567890123456789"));
    }
}
