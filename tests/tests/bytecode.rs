//! The plugin `transformers` in its worker keeps compiled Python between loads, in the folder that the registry gives it, and
//! that two traces of a model agreed.

use std::path::{Path, PathBuf};

use host::registry::{Registry, RegistryOptions};
use host_tests::library::registry_with_transformers;
use host_tests::zoo;
use plugin_api::{BuildRequest, TensorInfo};

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");

#[test]
fn compiled_python_is_kept_and_gives_the_same_graph() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().canonicalize().unwrap().join("cache");
    let options = RegistryOptions { cache_dir: Some(cache.clone()), ..registry_with_transformers(WORKER) };
    let registry = Registry::new(RegistryOptions { deadline: std::time::Duration::from_secs(120), ..options }).unwrap();
    let is_it = |found: &host::registry::Found| found.description.as_ref().is_ok_and(|d| d.name == "transformers");
    let plugin = registry.scan().into_iter().find(is_it).expect("the plugin").select().unwrap();

    let entry = zoo::entry("llama").expect("is in the zoo");
    let tensors = entry.tensors().unwrap().into_iter();
    let tensors = tensors.map(|(name, dtype, shape)| TensorInfo { name, dtype, shape }).collect();
    let request = BuildRequest::new(entry.config().unwrap(), tensors);
    let first = registry.build_model(&plugin, &request).unwrap();
    let kept = files(&cache, "pyc");
    let is_given = !kept.is_empty();
    assert!(is_given || host::registry::sandbox_support().landlock.is_err(), "nothing in {}", cache.display());
    assert_eq!(registry.build_model(&plugin, &request).unwrap(), first);
    assert_eq!(files(&cache, "pyc"), kept, "nothing is compiled twice");
    if !is_given {
        return;
    }

    // A note that is of other code does not count, and is written anew.
    let [note] = files(&cache, "note").try_into().expect("one note");
    let text = std::fs::read_to_string(&note).unwrap();
    let (numbers, code) = text.rsplit_once(' ').expect("ends in a hash");
    std::fs::write(&note, format!("{numbers} {}", code.chars().rev().collect::<String>())).unwrap();
    assert_eq!(registry.build_model(&plugin, &request).unwrap(), first);
    assert_eq!(std::fs::read_to_string(&note).unwrap(), text);
    // Another configuration has its own.
    let mut other = request.clone();
    other.config["rms_norm_eps"] = 1e-3.into();
    assert_ne!(registry.build_model(&plugin, &other).unwrap(), first);
    assert_eq!(files(&cache, "note").len(), 2);
}

/// Files with this ending anywhere below.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false => out.extend(path.extension().is_some_and(|e| e == ending).then_some(path)),
            }
        }
    }
    out.sort();
    out
}
