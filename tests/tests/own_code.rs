//! Models that bring their own code, laid out in other ways than the zoo's: loaded with `--trust-remote-code` through the
//! whole library and compared with torch's greedy ids.

use std::fs;
use std::path::{Path, PathBuf};

use host::exec::Dtype;
use host::llm::{ExecutorKind, Llm, LlmOptions, ModelSource, SamplingParams};
use host::registry::ModelImpl;
use host_tests::library::{self, registry_with_transformers};
use host_tests::zoo::{self, transformers};

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");

fn options(dir: &Path) -> LlmOptions {
    LlmOptions {
        registry: registry_with_transformers(WORKER),
        model_impl: ModelImpl::Transformers,
        trust_remote_code: true,
        dtype: library::dtype(Dtype::Float32),
        threads: Some(1),
        ..library::options(ModelSource::Named(dir.to_str().expect("UTF-8").into()), WORKER)
    }
}

/// An entry of the zoo in a folder, with its configuration changed.
fn model(parent: &Path, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let dir = zoo::entry(name).expect("is in the zoo").materialize(parent).expect("writes");
    let path = dir.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).expect("reads")).expect("is JSON");
    change(&mut config);
    fs::write(path, config.to_string()).expect("writes");
    dir
}

/// All prompts of the entry give torch's ids.
#[track_caller]
fn as_torch(entry: &str, dir: &Path) {
    let llm = Llm::load(&options(dir)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(llm.info().executor, "cpu");
    let params =
        SamplingParams { max_tokens: Some(16), temperature: 0.0, ignore_eos: true, ..SamplingParams::default() };
    for prompt in zoo::entry(entry).expect("is in the zoo").golden().expect("has goldens").prompts {
        let answer = llm.generate([prompt.prompt_ids.as_slice()], params.clone()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(answer[0].choices[0].token_ids, prompt.greedy_ids, "prompt of {}", prompt.prompt_ids.len());
    }
}

#[test]
fn auto_map_may_point_into_folders() {
    for separator in ["/", "."] {
        let root = tempfile::tempdir().expect("a folder");
        let dir = model(root.path(), "nimbus", |config| {
            for reference in config["auto_map"].as_object_mut().expect("brings code").values_mut() {
                let file = reference.as_str().expect("a name").to_owned();
                *reference = format!("src{separator}nimbus{separator}{file}").into();
            }
        });
        let code = dir.join("src").join("nimbus");
        fs::create_dir_all(&code).expect("a folder");
        for file in ["configuration_nimbus.py", "modeling_nimbus.py"] {
            fs::rename(dir.join(file), code.join(file)).expect("moves");
        }
        as_torch("nimbus", &dir);
    }
}

/// The code of a model with a loop over tokens, under other names and as the model's own; `change` is done to it.
fn with_loop(parent: &Path, change: impl Fn(&str) -> String) -> PathBuf {
    let dir = model(parent, "recurrent_gemma", |config| {
        config["architectures"] = serde_json::json!(["SandpiperForCausalLM"]);
        config["model_type"] = "sandpiper".into();
        config["auto_map"] = serde_json::json!({
            "AutoConfig": "configuration_sandpiper.SandpiperConfig",
            "AutoModelForCausalLM": "modeling_sandpiper.SandpiperForCausalLM",
        });
    });
    let package = transformers::package().join("models/recurrent_gemma");
    for kind in ["configuration", "modeling"] {
        let code = fs::read_to_string(package.join(format!("{kind}_recurrent_gemma.py"))).expect("reads");
        let code = code
            .replace("from ...", "from transformers.")
            .replace("from transformers. import", "from transformers import")
            .replace("RecurrentGemma", "Sandpiper")
            .replace("recurrent_gemma", "sandpiper");
        fs::write(dir.join(format!("{kind}_sandpiper.py")), change(&code)).expect("writes");
    }
    dir
}

#[test]
fn loops_over_tokens_are_known_by_their_text_and_not_by_names() {
    let root = tempfile::tempdir().expect("a folder");
    as_torch("recurrent_gemma", &with_loop(root.path(), str::to_owned));
}

#[test]
fn a_changed_loop_over_tokens_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let (kept, changed) = ("recurrent_states + hidden_states[:, t]", "recurrent_states - hidden_states[:, t]");
    let dir = with_loop(root.path(), |code| code.replace(kept, changed));
    let error = Llm::load(&LlmOptions { executor: ExecutorKind::Auto, ..options(&dir) }).expect_err("is refused");
    let error = error.to_string();
    assert!(error.contains("modeling_sandpiper.py") && error.contains("a loop over range(T)"), "{error}");
}
