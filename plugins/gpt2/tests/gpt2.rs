//! The plugin's graphs: golden files, the zoo's checkpoints, and configurations that are refused.

use host_plugin_gpt2::Gpt2;
use plugin_api::{BuildRequest, Op, Plugin, TensorInfo, testkit};
use serde_json::{Value, json};

#[test]
fn golden_files() {
    for name in ["tied", "untied_scaled"] {
        testkit::golden::<Gpt2>(format!("tests/golden/{name}.txt"));
    }
}

fn checkpoint(entry: &str, rename: impl Fn(String) -> String) {
    let entry = host_tests::zoo::entry(entry).unwrap();
    let info = |(name, dtype, shape)| TensorInfo { name: rename(name), dtype, shape };
    testkit::checkpoint::<Gpt2>(entry.config().unwrap(), entry.tensors().unwrap().into_iter().map(info).collect());
}

#[test]
fn zoo() {
    checkpoint("gpt2", |name| name);
    checkpoint("gpt2__untied_scaled", |name| name);
}

/// Checkpoints of the bare model, such as the original gpt2, have no prefix.
#[test]
fn checkpoints_without_prefix() {
    let bare = |name: String| name.strip_prefix("transformer.").unwrap_or(&name).to_owned();
    checkpoint("gpt2", bare);
    checkpoint("gpt2__untied_scaled", bare);
}

/// A small GPT-2 with some fields changed; "remove" removes a field.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["GPT2LMHeadModel"], "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4,
    });
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, v| *v != "remove");
    config
}

#[test]
fn scores_are_scaled_by_head_size_and_layer() {
    let scales = |changes| -> Vec<f32> {
        let model = testkit::build::<Gpt2>(&config(changes).to_string());
        let scale = |op: &Op| if let Op::Attention { scale, .. } = op { Some(*scale) } else { None };
        model.graphs["decode"].nodes.iter().filter_map(|n| scale(&n.op)).collect()
    };
    assert_eq!(scales(json!({})), [0.5, 0.5]);
    assert_eq!(scales(json!({"scale_attn_weights": false})), [1.0, 1.0]);
    assert_eq!(scales(json!({"scale_attn_by_inverse_layer_idx": true})), [0.5, 0.25]);
    assert_eq!(scales(json!({"reorder_and_upcast_attn": true})), [0.5, 0.5]);
}

#[test]
fn general_names_of_sizes_are_read_too() {
    let general = json!({"n_embd": "remove", "hidden_size": 16, "n_layer": "remove", "num_hidden_layers": 2,
                         "n_head": "remove", "num_attention_heads": 4, "max_position_embeddings": 1024});
    let build = |changes| testkit::build::<Gpt2>(&config(changes).to_string());
    assert_eq!(build(general), build(json!({})));
    assert_eq!(build(json!({"n_positions": 77})).context_length, 77);
}

/// (changes, parts of the message)
#[test]
fn broken_configurations_give_errors_that_name_the_field() {
    let cases: &[(Value, &[&str])] = &[
        (json!({"n_embd": "remove"}), &["`n_embd` is missing"]),
        (json!({"n_layer": null}), &["`n_layer` is missing"]),
        (json!({"vocab_size": "remove"}), &["`vocab_size` is missing"]),
        (json!({"n_embd": "16"}), &["`n_embd` is \"16\"", "integer from 1 to"]),
        (json!({"n_embd": 18}), &["`n_embd` is 18", "multiple of the 4 heads"]),
        (json!({"n_layer": 0}), &["`n_layer` is 0"]),
        (json!({"n_layer": 1_000_000}), &["`n_layer` is 1000000", "at most 4096"]),
        (json!({"n_inner": 0}), &["`n_inner` is 0"]),
        (json!({"n_embd": 1u64 << 40}), &["`n_embd` is 1099511627776", "2147483648"]),
        (json!({"activation_function": "warp"}), &["`activation_function` is \"warp\"", "gelu_new"]),
        (json!({"layer_norm_epsilon": 2}), &["`layer_norm_epsilon` is 2", "from 0 to 1"]),
        (json!({"scale_attn_weights": "yes"}), &["`scale_attn_weights` is \"yes\"", "true or false"]),
        (json!({"add_cross_attention": true}), &["`add_cross_attention` is true", "not supported"]),
        (json!({"quantization_config": {"bits": 4}}), &["`quantization_config`", "not supported"]),
        (json!({"architectures": ["GPT2Model"]}), &["`architectures` is [\"GPT2Model\"]", "GPT2LMHeadModel"]),
    ];
    for (changes, expected) in cases {
        let request = BuildRequest::new(config(changes.clone()), Vec::new());
        let error = Gpt2::build(&request).map(drop).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{changes}: {error}");
    }
}
