//! Which plugin is chosen, from where, and what is said when none is.

use host::registry::{ModelImpl, Registry, RegistryOptions};
use serde_json::json;

use crate::support::*;

fn select(registry: &Registry, model_impl: &str, architecture: &str) -> Result<String, String> {
    let model_impl: ModelImpl = model_impl.parse().unwrap();
    assert_eq!(model_impl.to_string().parse(), Ok(model_impl.clone()));
    registry.select(&model_impl, architecture).map(|s| s.description.name).map_err(|e| e.to_string())
}

#[test]
fn native_before_transformers_and_names_force() {
    let folder = Folder::new(&[("bad", &bad("healthy")), ("a", &bad("transformers"))]);
    let registry = folder.registry();
    let ok = |name: &str| Ok(name.to_owned());
    assert_eq!(select(&registry, "auto", "BadForCausalLM"), ok("bad"));
    assert_eq!(select(&registry, "auto", "UnheardOf"), ok("transformers"));
    assert_eq!(select(&registry, "native", "OtherForCausalLM"), ok("bad"));
    assert_eq!(select(&registry, "transformers", "BadForCausalLM"), ok("transformers"));
    assert_eq!(select(&registry, "bad", "UnheardOf"), ok("bad"), "a name forces its plugin");
    let error = select(&registry, "native", "UnheardOf").unwrap_err();
    for words in [
        "no plugin can build the architecture `UnheardOf` (--model-impl native)",
        "claims BadForCausalLM, OtherForCausalLM, not `UnheardOf`",
        "transformers 0.1.0",
        "is not native",
        folder.dir.to_str().unwrap(),
    ] {
        assert!(error.contains(words), "no `{words}` in: {error}");
    }
    let kind = |name| registry.select(&ModelImpl::Named(name), "BadForCausalLM").unwrap().kind();
    assert_eq!((kind("bad".into()), kind("transformers".into())), ("native", "transformers"));
}

#[test]
fn a_failed_choice_lists_everything_that_was_tried() {
    let folder = Folder::new(&[("bad", &bad("healthy")), ("broken", b"text"), ("same", &bad("version:2"))]);
    let error = select(&folder.registry(), "auto", "UnheardOf").unwrap_err();
    for words in [
        "claims BadForCausalLM",
        "is not a shared library: it starts with `text`",
        "has the same name as",
        "transformers: is not installed (no usable libhost_plugin_transformers.so)",
    ] {
        assert!(error.contains(words), "no `{words}` in: {error}");
    }
    let error = select(&folder.registry(), "mine", "BadForCausalLM").unwrap_err();
    assert!(
        error.contains("there is no usable plugin called `mine`") && error.contains("is not called `mine`"),
        "{error}"
    );

    let empty = Folder::new(&[]);
    let error = select(&empty.registry(), "native", "A").unwrap_err();
    assert!(error.contains("no plugin was found"), "{error}");
}

#[test]
fn the_first_of_two_plugins_with_one_name_wins() {
    let first = Folder::new(&[("z", &bad("version:2"))]);
    let second = Folder::new(&[("a", &bad("healthy"))]);
    let registry = first.registry_with(|o| o.implicit_dirs = vec![second.dir.clone()]);
    let found = registry.scan();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].hidden_by, None);
    assert_eq!(found[1].hidden_by.as_ref(), Some(&found[0].path));
    let chosen = registry.select(&ModelImpl::Auto, "BadForCausalLM").unwrap();
    assert_eq!(chosen.description.version, "2.0.0");
}

#[test]
fn a_replaced_file_gives_the_new_code_and_a_new_file_is_seen() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let old = selected(&registry);
    assert_eq!(old.description.version, env!("CARGO_PKG_VERSION"));
    folder.put("bad", &bad("version:2"));
    let new = selected(&registry);
    assert_eq!(new.description.version, "2.0.0");
    assert_ne!(old.sha256(), new.sha256());
    // What was chosen before still builds with the code that was described.
    registry.build_model(&old, &request(json!({}))).unwrap();
    folder.put("new", &bad("renamed"));
    assert_eq!(registry.scan().len(), 2);
}

#[test]
fn known_plugins_start_no_process() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    selected(&folder.registry());
    let registry = folder.registry_with(|o| o.worker = "/nonexistent/host".into());
    let plugin = selected(&registry);
    let error = registry.build(&plugin, &request(json!({}))).unwrap_err();
    assert_says(&error, &["could not be asked: the worker process /nonexistent/host cannot be started"]);
    // A failure is not remembered.
    folder.put("bad", &bad("describe:exit0"));
    assert!(only(folder.registry().scan()).description.is_err());
    folder.put("bad", &bad("renamed"));
    assert_eq!(selected(&folder.registry()).description.name, "renamed");
}

#[test]
fn unsafe_folders_and_files_are_refused() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let file = folder.dir.join(file_name("host_plugin_bad"));
    set_mode(&file, 0o666);
    let error = only(folder.registry().scan()).description.unwrap_err();
    assert_says(&error, &["is refused: can be written to by its group and everybody", "chmod go-w"]);
    set_mode(&file, 0o755);

    set_mode(&folder.dir, 0o777);
    let error = Registry::new(folder.options()).unwrap_err().to_string();
    let expected = format!("--plugins-dir {}: it can be written to by", folder.dir.display());
    assert!(error.starts_with(&expected), "{error}");
    // Unless named, it is left out.
    let options = RegistryOptions { dirs: vec![], implicit_dirs: vec![folder.dir.clone()], ..folder.options() };
    let registry = Registry::new(options).unwrap();
    assert!(registry.scan().is_empty());
    let error = select(&registry, "auto", "BadForCausalLM").unwrap_err();
    assert!(error.contains("not used, it can be written to by"), "{error}");

    let missing = Registry::new(RegistryOptions { dirs: vec!["/nonexistent/dir".into()], ..folder.options() });
    assert!(missing.unwrap_err().to_string().contains("--plugins-dir /nonexistent/dir: it cannot be opened"));
}
