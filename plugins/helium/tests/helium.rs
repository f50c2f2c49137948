//! The plugin's graphs: golden files, the zoo's checkpoint, and configurations that are refused.

use host_plugin_helium::Helium;
use plugin_api::{BuildRequest, Op, Plugin, TensorInfo, testkit};
use serde_json::{Value, json};

#[test]
fn golden_files() {
    for name in ["plain", "tied_biased_linear"] {
        testkit::golden::<Helium>(format!("tests/golden/{name}.txt"));
    }
}

#[test]
fn zoo() {
    let entry = host_tests::zoo::entry("helium").unwrap();
    let info = |(name, dtype, shape)| TensorInfo { name, dtype, shape };
    testkit::checkpoint::<Helium>(entry.config().unwrap(), entry.tensors().unwrap().into_iter().map(info).collect());
}

/// A small Helium with some fields changed; "remove" removes a field.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["HeliumForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    });
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, v| *v != "remove");
    config
}

#[test]
fn heads_of_128_and_20_key_heads_are_the_defaults() {
    let defaults = json!({"hidden_size": 2560, "num_attention_heads": 20, "num_key_value_heads": "remove",
                          "head_dim": "remove"});
    let model = testkit::build::<Helium>(&config(defaults).to_string());
    assert_eq!(model.context_length, 4096);
    assert!(model.graphs["decode"].kv_states().iter().all(|s| (s.heads, s.key_dim) == (20, 128)));
}

#[test]
fn neighbouring_elements_are_rotated() {
    let model = testkit::build::<Helium>(&config(json!({})).to_string());
    let ropes = model.graphs["decode"].nodes.iter().filter(|n| matches!(n.op, Op::Rope { interleaved: true }));
    assert_eq!(ropes.count(), 4);
}

/// (changes, parts of the message)
#[test]
fn broken_configurations_give_errors_that_name_the_field() {
    let cases: &[(Value, &[&str])] = &[
        (json!({"hidden_size": "remove"}), &["`hidden_size` is missing"]),
        (json!({"num_hidden_layers": "remove"}), &["`num_hidden_layers` is missing"]),
        (json!({"hidden_size": [16]}), &["`hidden_size` is [16]", "integer from 1 to"]),
        (json!({"hidden_size": 32}), &["`hidden_size` is 32", "4 heads of size 4"]),
        (json!({"num_key_value_heads": 3}), &["`num_attention_heads` is 4", "multiple of the 3 key heads"]),
        (json!({"num_hidden_layers": 0}), &["`num_hidden_layers` is 0", "from 1 to 4096"]),
        (json!({"head_dim": 1u64 << 50}), &["`head_dim` is", "65536"]),
        (json!({"hidden_act": "warp"}), &["`hidden_act` is \"warp\"", "known are silu"]),
        (json!({"mlp_bias": "no"}), &["`mlp_bias` is \"no\"", "true or false"]),
        (json!({"rope_parameters": {"rope_type": "warp"}}), &["`rope_parameters.rope_type` is \"warp\""]),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), &["rotates 2 of the 4 elements"]),
        (json!({"quantization_config": {"bits": 4}}), &["`quantization_config`", "not supported"]),
        (json!({"architectures": ["LlamaForCausalLM"]}), &["`architectures`", "HeliumForCausalLM"]),
        (json!({"architectures": "HeliumForCausalLM"}), &["`architectures`", "must be a list"]),
    ];
    for (changes, expected) in cases {
        let request = BuildRequest::new(config(changes.clone()), Vec::new());
        let error = Helium::build(&request).map(drop).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{changes}: {error}");
    }
}
