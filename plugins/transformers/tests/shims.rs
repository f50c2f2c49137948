//! Runs the tests that are written in Python, beside our Python files: every `python/tests/test_*.py` is a script that
//! raises an exception where a test fails.

use std::path::{Path, PathBuf};

use plugin_api::Sources;

mod support;

#[test]
fn tests_in_python_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/tests");
    let entries = std::fs::read_dir(&folder).expect("the folder of tests");
    let is_test = |f: &PathBuf| f.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("test_"));
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).filter(is_test).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut failed = 0;
    for file in files {
        if let Err(failure) = support::run_file(&file, Sources::default()) {
            failed += 1;
            eprintln!("{}: {}\n  {}", file.display(), failure.message, failure.frames.join("\n  "));
        }
    }
    assert_eq!(failed, 0, "files with failing tests");
}
