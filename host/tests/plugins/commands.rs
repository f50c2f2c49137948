//! `host plugins list`, `check` and `new`.

use std::fs;

use host::registry::ModelImpl;
use host::registry::commands::{self, CommandError, NewOptions, PluginApi};
use serde_json::json;

use crate::support::*;

#[test]
fn list_shows_the_good_the_bad_and_the_folders() {
    let folder = Folder::new(&[("bad", &bad("healthy")), ("broken", b"text"), ("same", &bad("version:2"))]);
    let mut out = Vec::new();
    commands::list(&folder.registry(), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("NAME  VERSION  LICENSE     IR   ARCHITECTURES"), "{out}");
    let row =
        format!("bad   0.1.0    Apache-2.0  {}  BadForCausalLM, OtherForCausalLM  ", plugin_api::IrVersion::CURRENT);
    assert!(lines[1].starts_with(&row), "{out}");
    assert!(out.contains("libhost_plugin_broken.so: is not a shared library"), "{out}");
    assert!(out.contains("libhost_plugin_same.so: not used,"), "{out}");
    assert!(out.trim_end().ends_with(&format!("searched, in this order:\n  {}", folder.dir.display())), "{out}");

    let mut out = Vec::new();
    commands::list(&Folder::new(&[]).registry(), &mut out).unwrap();
    assert!(String::from_utf8(out).unwrap().starts_with("no plugins\n"));
}

#[test]
fn check_says_what_it_did_and_fails_where_it_fails() {
    let folder = Folder::new(&[]);
    let file = folder.put("bad", &bad("healthy"));
    let config = folder.dir.join("config.json");
    let registry = folder.registry();
    let check = |config: Option<&std::path::Path>| {
        let mut out = Vec::new();
        let result = commands::check(&registry, &file, config, &mut out);
        (result, String::from_utf8(out).unwrap())
    };
    let (result, out) = check(None);
    result.unwrap();
    assert!(out.contains("describe  bad 0.1.0 (Apache-2.0)") && out.contains("build     not tried"), "{out}");

    fs::write(&config, json!({ "architectures": ["BadForCausalLM"] }).to_string()).unwrap();
    let (result, out) = check(Some(&config));
    result.unwrap();
    for words in [
        "verify    BadForCausalLM, context of 128 tokens; decode: 5 nodes, 1 weights of 256 parameters",
        "again     the",
    ] {
        assert!(out.contains(words), "no `{words}` in: {out}");
    }
    assert!(out.ends_with("ok\n"), "{out}");

    fs::write(&config, json!({ "architectures": ["X"], "order": "segfault" }).to_string()).unwrap();
    let (result, out) = check(Some(&config));
    assert!(matches!(result, Err(CommandError::Plugin(e)) if e.to_string().contains("SIGSEGV")));
    assert!(out.contains("describe  bad") && !out.contains("ok\n"), "{out}");

    fs::write(&config, "{").unwrap();
    let error = check(Some(&config)).0.unwrap_err().to_string();
    assert!(error.contains("config.json: is not JSON"), "{error}");
    set_mode(&file, 0o777);
    assert!(check(None).1.contains("note      in a plugins folder it would be refused"));
}

/// The crate builds outside this repository, passes its own tests, and its plugin builds a model in this host.
#[test]
fn a_new_plugin_builds_elsewhere_passes_its_test_and_is_found() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("made");
    let options = NewOptions { name: "my_model".into(), dir: Some(dir.clone()), plugin_api: PluginApi::Vendored };
    let mut out = Vec::new();
    commands::new(&options, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("src/lib.rs") && out.contains("vendor: the sources of plugin-api"), "{out}");
    // The versions that this repository was tested with; a user's cargo takes the newest compatible ones.
    fs::copy(workspace().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let output = cargo(&dir, &["test"]).unwrap();
    assert!(output.contains("2 passed"), "{output}");
    assert!(!output.contains("warning"), "{output}");
    cargo(&dir, &["build"]).unwrap();

    let folder = Folder::new(&[("my_model", &fs::read(library("host_plugin_my_model")).unwrap())]);
    let registry = folder.registry();
    let plugin = registry.select(&ModelImpl::Auto, "MyModelForCausalLM").unwrap();
    assert_eq!(plugin.description.name, "my_model");
    let golden = fs::read_to_string(dir.join("tests/golden/tiny.txt")).unwrap();
    let (config, expected) = golden.split_once("\n---\n").unwrap();
    let model = registry.build_model(&plugin, &request(serde_json::from_str(config).unwrap())).unwrap();
    assert_eq!(model.to_text().trim_end(), expected.trim_end());

    // It overwrites nothing.
    let error = commands::new(&options, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("cannot be written") && error.contains("exists"), "{error}");
    let wrong = NewOptions { name: "a/b".into(), ..options };
    assert!(matches!(commands::new(&wrong, &mut Vec::new()), Err(CommandError::Name(_))));
}
