//! The test kit must fail when a plugin is wrong.

use std::fs;
use std::panic::catch_unwind;

use plugin_api::{BuildError, BuildRequest, Builder, Description, Model, Plugin, TensorInfo, description, testkit};
use serde_json::json;

/// Embedding and head; `width` of config.json is the size between them.
struct Tiny;

impl Plugin for Tiny {
    fn describe() -> Description {
        description!("tiny", ["TinyForCausalLM"])
    }

    fn build(request: &BuildRequest) -> Result<Model, BuildError> {
        let c = plugin_api::config::Fields::new(&request.config)?;
        let width = c.required_size("width")?;
        let mut b = Builder::new();
        let ids = b.token_ids();
        let table = b.weight("embed", [8, width]);
        let x = b.embedding(ids, table);
        let x = b.select_outputs(x);
        let logits = b.linear_layer("head", x, 8, false);
        b.output("logits", logits);
        let graphs = [("decode".to_owned(), b.finish()?)].into();
        Ok(Model { architecture: "TinyForCausalLM".into(), context_length: 16, graphs })
    }
}

fn panic_of(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let payload = catch_unwind(f).expect_err("it must fail");
    payload.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_golden_file_that_differs_is_shown_line_by_line() {
    let dir = std::env::temp_dir().join(format!("host-testkit-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("tiny.txt");
    let text = testkit::build::<Tiny>(r#"{"width": 4}"#).to_text();

    fs::write(&path, "{\"width\": 4}\n").unwrap();
    assert!(panic_of(|| testkit::golden::<Tiny>(&path)).contains("UPDATE_GOLDEN=1"));
    fs::write(&path, format!("{{\"width\": 4}}\n---\n{text}")).unwrap();
    testkit::golden::<Tiny>(&path);
    fs::write(&path, format!("{{\"width\": 5}}\n---\n{text}")).unwrap();
    let message = panic_of(|| testkit::golden::<Tiny>(&path));
    assert!(message.contains("    6 -   %1 float[8,4] = weight"), "{message}");
    assert!(message.contains("    6 +   %1 float[8,5] = weight"), "{message}");
    fs::write(&path, "{}").unwrap();
    assert!(panic_of(|| testkit::golden::<Tiny>(&path)).contains("`width` is missing"));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_graph_that_does_not_fit_its_checkpoint_is_reported_tensor_by_tensor() {
    let tensors = |list: &[(&str, [usize; 2])]| -> Vec<TensorInfo> {
        let info = |&(name, shape): &(&str, [usize; 2])| TensorInfo {
            name: name.to_owned(),
            dtype: "F32".to_owned(),
            shape: shape.to_vec(),
        };
        list.iter().map(info).collect()
    };
    let config = json!({"width": 4});
    testkit::checkpoint::<Tiny>(config.clone(), tensors(&[("head.weight", [8, 4]), ("embed", [8, 4])]));
    let wrong = tensors(&[("embed", [8, 5]), ("other", [1, 1])]);
    let message = panic_of(|| drop(testkit::checkpoint::<Tiny>(config, wrong)));
    for part in [
        "head.weight [8, 4] is not in the checkpoint",
        "embed is read as [8, 4], the checkpoint has [8, 5]",
        "other [1, 1] of the checkpoint is not read",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
