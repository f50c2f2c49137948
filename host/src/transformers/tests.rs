//! In which order the package is looked for, and what is said about what is there.

use std::fs;
use std::path::Path;

use super::*;

pub(super) fn options(root: &Path) -> PackageOptions {
    PackageOptions {
        places: vec![root.join("a"), root.join("b")],
        cache_dir: Some(root.join("cache")),
        index: "http://127.0.0.1:9/simple".to_owned(),
        offline: true,
        progress: false,
        timeout: Duration::from_secs(5),
        retries: 1,
        retry_delay: Duration::from_millis(4),
        ..PackageOptions::default()
    }
}

fn put(site: &Path, version: &str) {
    let package = site.join("transformers");
    fs::create_dir_all(package.join("models/auto")).unwrap();
    fs::write(package.join("__init__.py"), format!("__version__ = \"{version}\"\n")).unwrap();
}

#[test]
fn the_setting_comes_first_then_site_packages_then_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let mut options = options(&root);
    let found = |options: &PackageOptions| find(options).unwrap().map(|p| (p.dir, p.version, p.origin));
    assert_eq!(found(&options), None);
    let error = find_or_fetch(&options).unwrap_err().to_string();
    for words in ["offline", "fetch-transformers WHEEL", root.join("a").to_str().unwrap()] {
        assert!(error.contains(words), "no `{words}` in {error}");
    }
    let cached = wheel::place(&root.join("cache"), &options.pin);
    put(&cached, "5.23.0");
    assert_eq!(found(&options), Some((cached.join("transformers"), "5.23.0".into(), Origin::Cache)));
    put(&root.join("b"), "5.4.0");
    assert_eq!(found(&options), Some((root.join("b/transformers"), "5.4.0".into(), Origin::Installed)));
    // Of another major version: not used unless named.
    put(&root.join("a"), "4.57.1");
    assert_eq!(found(&options), Some((root.join("b/transformers"), "5.4.0".into(), Origin::Installed)));
    for path in [root.join("a"), root.join("a/transformers")] {
        options.path = Some(path);
        assert_eq!(found(&options), Some((root.join("a/transformers"), "4.57.1".into(), Origin::Setting)));
    }
    let warning = find(&options).unwrap().unwrap().warning().unwrap();
    assert!(warning.contains("older than the versions") && warning.contains("--transformers-path"), "{warning}");
    options.path = Some(root.join("nowhere"));
    let error = find(&options).unwrap_err().to_string();
    assert!(error.starts_with("--transformers-path ") && error.contains("it has no __init__.py"), "{error}");
}

#[test]
fn classes_are_known_by_the_tables() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "5.0.0");
    let dir = root.path().join("transformers");
    assert!(!knows(&dir, "AForCausalLM"));
    fs::write(dir.join("models/auto/modeling_auto.py"), "M = [(\"a\", \"AForCausalLM\")]\n").unwrap();
    assert!(knows(&dir, "AForCausalLM") && !knows(&dir, "A"));
}
