//! The package transformers, a model's own code, the choice between plugins, and `host doctor`: what is said and done.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::build;
use crate::models::Folder;
use crate::program::{Output, Place, arg, finish, says};

/// A place with a native plugin `bad` and a plugin `transformers` that says that it reads the package and a model's code.
struct World {
    place: Place,
    site: PathBuf,
}

impl World {
    fn new() -> World {
        let place = Place::new();
        place.put_plugin("bad", &build::bad("healthy"));
        place.put_plugin("needs", &build::bad("needs"));
        place.put("site/transformers/__init__.py", "__version__ = \"5.2.0\"\n");
        place.put("site/transformers/models/auto/modeling_auto.py", "NAMES = [(\"a\", \"KnownForCausalLM\")]\n");
        World { site: place.path("site"), place }
    }

    fn model(&self, name: &str, config: &Value) -> Folder {
        Folder::made(self.place.path(&format!("models/{name}")), config, &[("embedding.weight", &[32, 8])])
    }

    fn run(&self, command: &str, folder: &Folder, more: &[&str]) -> Output {
        self.run_as("auto", command, folder, more)
    }

    fn run_as(&self, model_impl: &str, command: &str, folder: &Folder, more: &[&str]) -> Output {
        let fixed = [command, folder.arg(), "--skip-tokenizer-init", "--transformers-path", arg(&self.site)];
        self.place.run(&[&fixed[..], &["--model-impl", model_impl], more].concat())
    }
}

#[test]
fn auto_goes_on_to_transformers_and_says_so() {
    let world = World::new();
    // Nobody claims it: transformers is asked, and what it read is shown.
    let folder = world.model("other", &json!({"architectures": ["UnheardOf"]}));
    let shown = world.run("inspect", &folder, &[]);
    let site = format!("transformers    5.2.0, {}", arg(&world.site.join("transformers")));
    says(shown.good(), &["transformers 0.1.0 (transformers)", &site]);
    // The native plugin claims it.
    let folder = world.model("claimed", &json!({"architectures": ["BadForCausalLM"]}));
    let shown = world.run("inspect", &folder, &[]);
    says(shown.good(), &["bad 0.1.0 (native)"]);
    assert!(!shown.stdout.contains("transformers "), "{shown:?}");
    // The native plugin claims it and does not support it; nor does the other.
    let folder = world.model("declined", &json!({"architectures": ["BadForCausalLM"], "order": "declines"}));
    let output = world.run("inspect", &folder, &[]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let both = ["plugin `bad`", "plugin `transformers`"].map(|plugin| {
        let line =
            output.stderr.lines().filter(|line| line.starts_with("  ") && line.contains(plugin)).collect::<Vec<_>>();
        assert_eq!(line.len(), 1, "{plugin}: {output:?}");
        line[0].contains("this plugin obeys no such order")
    });
    assert_eq!(both, [true, true], "{output:?}");
    says(
        &output.stderr,
        &["; trying plugin `transformers`", &format!("no plugin can build the model {}; tried:", folder.arg())],
    );
    // After a crash nothing else is tried.
    let folder = world.model("crash", &json!({"architectures": ["BadForCausalLM"], "order": "abort"}));
    world.run("inspect", &folder, &[]).fails(&["plugin `bad`", "SIGABRT"]);
    // Asked for by name, it is the only one.
    let folder = world.model("named", &json!({"architectures": ["BadForCausalLM"], "order": "declines"}));
    world.run_as("transformers", "inspect", &folder, &[]).fails(&["plugin `transformers`", "obeys no such"]);
}

#[test]
fn the_log_and_the_model_list_say_what_is_used() {
    let world = World::new();
    let folder = world.model("other", &json!({"architectures": ["UnheardOf"]}));
    let args = ["--model-impl", "auto", "--skip-tokenizer-init", "--transformers-path", arg(&world.site)];
    let server = world.place.serve(&[&[folder.arg()], &args[..]].concat());
    says(&server.log(), &["transformers version=\"5.2.0\"", arg(&world.site), "model_impl=\"transformers\""]);
    let about = &server.get("/v1/models").json()["data"][0]["host"];
    assert_eq!((&about["model_impl"], &about["transformers"]), (&json!("transformers"), &json!("5.2.0")));
}

#[test]
fn a_models_own_code_is_read_only_with_leave() {
    let world = World::new();
    let map = json!({"AutoConfig": "sub.configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"});
    let order = |file: &str| format!("read={}", arg(&world.place.path(&format!("models/own/{file}"))));
    let config =
        |architecture: &str, order: &str| json!({"architectures": [architecture], "auto_map": map, "order": order});
    let folder = world.model("own", &config("XForCausalLM", "healthy"));
    folder.put("modeling_x.py", "x = 1\n");
    std::fs::create_dir(folder.dir.join("sub")).unwrap();
    folder.put("sub/configuration_x.py", "x = 1\n");
    let refused = world.run("generate", &folder, &["--prompt-token-ids", "1"]);
    refused.fails(&[folder.arg(), "modeling_x.py", "modeling_x.XForCausalLM", "--trust-remote-code"]);
    let shown = world.run("inspect", &folder, &["--trust-remote-code"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    says(&shown.stdout, &[&format!("model's code    2 files of {}", folder.arg())]);
    says(&shown.stderr, &["WARN", "running the model's own code (2 files of"]);
    // What may be read follows, and nothing else of the folder.
    for (file, said) in [("modeling_x.py", "done"), ("sub/configuration_x.py", "done"), ("config.json", "refused, ")] {
        let order = order(file);
        folder.put("config.json", config("XForCausalLM", &order).to_string());
        let output = world.run("inspect", &folder, &["--trust-remote-code", "--log-level", "error"]);
        if said == "done" || host::registry::sandbox_support().landlock.is_ok() {
            output.fails(&[&format!("{order}: {said}")]);
        }
    }
    // A class that transformers has itself needs no code of the model; nor does one that a native plugin claims.
    folder.put("config.json", config("KnownForCausalLM", "healthy").to_string());
    world.run("inspect", &folder, &[]).good();
    folder.put("config.json", config("BadForCausalLM", "healthy").to_string());
    says(world.run("inspect", &folder, &["--trust-remote-code"]).good(), &["bad 0.1.0 (native)"]);
}

#[test]
fn a_wheel_that_is_not_the_pinned_one_is_refused_and_offline_says_what_to_do() {
    let place = Place::new();
    let wheel = place.put("some.whl", "PK");
    place.run(&["plugins", "fetch-transformers", arg(&wheel)]).fails(&["some.whl", "sha256", "expected is 018e82fd"]);
    place.run(&["plugins", "fetch-transformers", "gone.whl"]).fails(&["gone.whl: cannot be read"]);
    place.run(&["plugins", "fetch-transformers"]).fails(&["offline", "host plugins fetch-transformers WHEEL"]);
    let mut online =
        place.host(&["plugins", "fetch-transformers", "--transformers-index", "http://127.0.0.1:9/simple"]);
    online.env_remove("HF_HUB_OFFLINE").env_remove("PIP_INDEX_URL");
    let output = finish(&mut online, b"");
    assert_eq!(output.code, Some(1), "{output:?}");
    says(&output.stderr, &["fetching transformers-5.23.0-py3-none-any.whl from http://127.0.0.1:9/simple failed"]);
}

#[test]
fn doctor_shows_what_there_is_and_fails_where_something_must_be_fixed() {
    let world = World::new();
    let place = &world.place;
    // A copy of the program: beside the real one lie the plugins that cargo built.
    let program = place.path("bin/host");
    std::fs::create_dir(place.path("bin")).unwrap();
    build::set_mode(&place.path("bin"), 0o755);
    std::fs::copy(env!("CARGO_BIN_EXE_host"), &program).unwrap();
    let doctor = |more: &[&str]| {
        let asked = place.host(&[&["doctor"], more].concat());
        let mut command = std::process::Command::new(&program);
        command.args(asked.get_args()).current_dir(place.path(""));
        for (name, value) in asked.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        finish(&mut command, b"")
    };
    let well = doctor(&["--transformers-path", arg(&world.site)]);
    let site = format!("transformers    5.2.0, {} (--transformers-path)", arg(&world.site.join("transformers")));
    says(
        well.good(),
        &["processor       ", "memory          ", "sandbox         landlock ", "plugins         bad 0.1.0, ", &site],
    );
    assert!(well.stdout.ends_with("\nnothing must be fixed\n"), "{well:?}");
    place.put_plugin("broken", b"text");
    let ill = doctor(&["--transformers-path", "/nowhere"]);
    assert_eq!(ill.code, Some(1), "{ill:?}");
    says(
        &ill.stdout,
        &["problems:", "libhost_plugin_broken.so: is not a shared library", "--transformers-path /nowhere: it has no"],
    );
    assert_eq!(ill.stderr, "error: 2 problems, see above\n");
}
