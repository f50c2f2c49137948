//! What a plugin is given to read beside the request, by what its description says that it needs.

use std::fs;

use plugin_api::{BuildRequest, ModelCode, Sources};
use serde_json::json;

use crate::support::*;

/// A site-packages folder with a package of this version.
fn site(version: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let package = root.path().join("transformers");
    fs::create_dir_all(package.join("models")).unwrap();
    fs::write(package.join("__init__.py"), format!("__version__ = \"{version}\"\n")).unwrap();
    root
}

#[test]
fn a_plugin_gets_what_it_needs_and_nothing_else() {
    let site = site("5.2.1");
    let code = ModelCode { dir: "/model".into(), files: vec!["a.py".into()] };
    let asked = BuildRequest {
        sources: Sources { model_code: Some(code.clone()), cache: Some("/etc".into()), ..Sources::default() },
        ..request(json!({}))
    };
    let supply = |order: &str| {
        let folder = Folder::new(&[("bad", &bad(order))]);
        let registry = folder.registry_with(|o| o.transformers.path = Some(site.path().to_owned()));
        registry.supply(&selected(&registry), &asked).map(|r| r.sources)
    };
    assert_eq!(supply("healthy").unwrap(), Sources::default());
    let sources = supply("needs").unwrap();
    assert_eq!(sources.transformers, Some(site.path().canonicalize().unwrap().join("transformers")));
    assert_eq!(sources.transformers_version.as_deref(), Some("5.2.1"));
    assert_eq!((sources.model_code, sources.cache), (Some(code), None));
    assert_says(&supply("needs-magic").unwrap_err(), &["needs `magic`, which this host", "use a newer host"]);
}

#[test]
fn a_package_that_cannot_be_had_is_an_error_that_says_what_to_do() {
    let folder = Folder::new(&[("bad", &bad("needs"))]);
    let registry = folder.registry_with(|o| {
        o.transformers.places = vec!["/nowhere/site-packages".into()];
        o.transformers.cache_dir = Some(folder.dir.join("packages"));
        o.transformers.offline = true;
    });
    let error = registry.build_model(&selected(&registry), &request(json!({}))).unwrap_err();
    assert_says(
        &error,
        &[
            "plugin `transformers`",
            "/nowhere/site-packages",
            "host plugins fetch-transformers WHEEL",
            "--transformers-path",
        ],
    );
    let registry = folder.registry_with(|o| o.transformers.path = Some("/nowhere".into()));
    let error = registry.build_model(&selected(&registry), &request(json!({}))).unwrap_err();
    assert_says(&error, &["--transformers-path /nowhere: it has no __init__.py"]);
}
