//! The plugin's graphs: golden files, the zoo's checkpoints, and configurations that are refused.

use host_plugin_llama::Llama;
use plugin_api::{BuildRequest, Plugin, TensorInfo, testkit};
use serde_json::{Value, json};

#[test]
fn golden_files() {
    for name in ["llama3", "mistral", "qwen2", "biased_longrope"] {
        testkit::golden::<Llama>(format!("tests/golden/{name}.txt"));
    }
}

/// Every model of the zoo that the plugin claims: the graph reads exactly the tensors of the checkpoint.
#[test]
fn zoo() {
    let mut built = 0;
    for entry in host_tests::zoo::entries() {
        let config = entry.config().unwrap();
        if !config["architectures"][0].as_str().is_some_and(|a| Llama::describe().claims(a)) {
            continue;
        }
        let info = |(name, dtype, shape)| TensorInfo { name, dtype, shape };
        let model =
            testkit::checkpoint::<Llama>(config.clone(), entry.tensors().unwrap().into_iter().map(info).collect());
        assert_eq!(model.architecture, config["architectures"][0], "{}", entry.name);
        built += 1;
    }
    assert!(built >= 16, "only {built} entries");
}

/// A small Llama with some fields changed; "remove" removes a field.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2
    });
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, v| *v != "remove");
    config
}

#[test]
fn defaults_are_those_of_the_config_classes() {
    let context = |changes| testkit::build::<Llama>(&config(changes).to_string()).context_length;
    assert_eq!(context(json!({})), 2048);
    assert_eq!(context(json!({"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": null})), 32_768);
    let heads8 =
        json!({"architectures": ["MistralForCausalLM"], "num_attention_heads": 8, "num_key_value_heads": "remove"});
    assert_eq!(context(heads8.clone()), 131_072);
    let windows = |changes| -> Vec<Option<u32>> {
        let model = testkit::build::<Llama>(&config(changes).to_string());
        model.graphs["decode"].kv_states().iter().map(|s| s.window).collect()
    };
    let mistral = |window: Value| windows(json!({"architectures": ["MistralForCausalLM"], "sliding_window": window}));
    assert_eq!(mistral(json!("remove")), [Some(4096); 2]);
    assert_eq!(mistral(json!(null)), [None; 2]);
    assert_eq!(mistral(json!(7)), [Some(7); 2]);
    let qwen2 = |use_sliding_window: bool, first: u64| {
        windows(json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 7, "max_window_layers": first,
                       "use_sliding_window": use_sliding_window}))
    };
    assert_eq!(qwen2(false, 0), [None; 2]);
    assert_eq!(qwen2(true, 0), [Some(7); 2]);
    assert_eq!(qwen2(true, 1), [None, Some(7)]);
    assert_eq!(qwen2(true, 28), [None; 2]);
    // A Llama has no sliding window, whatever its configuration says.
    assert_eq!(windows(json!({"sliding_window": 7})), [None; 2]);
}

/// (changes, parts of the message)
#[test]
fn broken_configurations_give_errors_that_name_the_field() {
    let mistral = |field: &str, value: Value| json!({"architectures": ["MistralForCausalLM"], field: value});
    let qwen2 = |types: Value| json!({"architectures": ["Qwen2ForCausalLM"], "layer_types": types});
    let cases: &[(Value, &[&str])] = &[
        (json!({"hidden_size": "remove"}), &["`hidden_size` is missing"]),
        (json!({"vocab_size": null}), &["`vocab_size` is missing"]),
        (json!({"intermediate_size": "remove"}), &["`intermediate_size` is missing"]),
        (json!({"hidden_size": "16"}), &["`hidden_size` is \"16\"", "integer from 1 to"]),
        (json!({"hidden_size": 16.5}), &["`hidden_size` is 16.5", "integer from 1 to"]),
        (json!({"hidden_size": -16}), &["`hidden_size` is -16", "integer from 1 to"]),
        (json!({"hidden_size": 1u64 << 60}), &["`hidden_size` is 1152921504606846976", "2147483648"]),
        (json!({"hidden_size": 18}), &["`hidden_size` is 18", "multiple of the 4 heads"]),
        (json!({"num_hidden_layers": 0}), &["`num_hidden_layers` is 0", "from 1 to 4096"]),
        (json!({"num_hidden_layers": 1_000_000}), &["`num_hidden_layers` is 1000000", "from 1 to 4096"]),
        (json!({"num_attention_heads": 0}), &["`num_attention_heads` is 0"]),
        (json!({"num_key_value_heads": 3}), &["`num_attention_heads` is 4", "multiple of the 3 key heads"]),
        (json!({"head_dim": 3}), &["rotate 3 elements"]),
        (json!({"head_dim": 1 << 20}), &["`head_dim` is 1048576", "65536"]),
        (json!({"hidden_size": 1 << 30}), &["heads of size 268435456", "65536"]),
        (json!({"num_attention_heads": 1 << 30, "head_dim": 1 << 16}), &["q_proj", "out of range"]),
        (json!({"rms_norm_eps": "tiny"}), &["`rms_norm_eps` is \"tiny\"", "must be a number"]),
        (json!({"rms_norm_eps": -1}), &["`rms_norm_eps` is -1", "from 0 to 1"]),
        (json!({"hidden_act": "warp"}), &["`hidden_act` is \"warp\"", "known are silu, swish, gelu"]),
        (json!({"hidden_act": 3}), &["`hidden_act` is 3", "must be a string"]),
        (json!({"tie_word_embeddings": "yes"}), &["`tie_word_embeddings` is \"yes\"", "true or false"]),
        (json!({"attention_bias": 1}), &["`attention_bias` is 1", "true or false"]),
        (json!({"quantization_config": {"bits": 4}}), &["`quantization_config` is {\"bits\":4}", "not supported"]),
        (json!({"rope_scaling": {"type": "warp"}}), &["`rope_scaling.type` is \"warp\"", "yarn"]),
        (json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor rotates 2 of the 4 elements"]),
        (json!({"max_position_embeddings": 0}), &["`max_position_embeddings` is 0"]),
        (
            json!({"architectures": ["GPT2LMHeadModel"]}),
            &["`architectures` is [\"GPT2LMHeadModel\"]", "MistralForCausalLM"],
        ),
        (json!({"architectures": []}), &["`architectures` names no class"]),
        (mistral("sliding_window", json!(0)), &["`sliding_window` is 0"]),
        (mistral("layer_types", json!(["full_attention"])), &["`layer_types`", "one sliding_window"]),
        (mistral("attention_bias", json!(true)), &["`attention_bias` is true", "no biases"]),
        (qwen2(json!(["full_attention"])), &["`layer_types`", "each of the 2 layers"]),
        (qwen2(json!(["full_attention", "warp"])), &["`layer_types`", "known are full_attention"]),
        (qwen2(json!(["full_attention", "sliding_attention"])), &["`layer_types`", "use_sliding_window"]),
    ];
    for (changes, expected) in cases {
        let request = BuildRequest::new(config(changes.clone()), Vec::new());
        let error = Llama::build(&request).map(drop).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{changes}: {error}");
    }
    for config in [json!(null), json!([]), json!("llama")] {
        let error = Llama::build(&BuildRequest::new(config, Vec::new())).map(drop).unwrap_err().to_string();
        assert!(error.contains("config.json must be an object"), "{error}");
    }
}

/// Whatever stands in a field, the plugin gives a graph that verifies, or an error: never a panic.
#[test]
fn odd_values_never_panic() {
    let fields = [
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "attention_bias",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    ];
    let rope_fields = [
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
        "low_freq_factor",
        "high_freq_factor",
        "partial_rotary_factor",
    ];
    let values = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(65536),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(1e-300),
        json!(1e38),
        json!(1e300),
        json!(""),
        json!("é".repeat(100)),
        json!(true),
        json!([]),
        json!([1, 1]),
        json!({}),
        json!({"rope_type": "yarn"}),
        json!({"a": [null]}),
    ];
    let mut built = 0;
    let mut check = |config: Value| {
        if let Ok(model) = Llama::build(&BuildRequest::new(config.clone(), Vec::new())) {
            plugin_api::spec::verify(&model).unwrap_or_else(|e| panic!("{config}: {e}"));
            built += 1;
        }
    };
    for architecture in Llama::describe().architectures {
        for field in fields {
            for value in &values {
                let mut config = config(json!({"architectures": [architecture]}));
                config[field] = value.clone();
                check(config);
            }
        }
    }
    for kind in plugin_api::rope::TYPES {
        for field in rope_fields {
            for value in &values {
                let mut rope = json!({
                    "rope_type": kind, "factor": 2, "short_factor": [1, 1], "long_factor": [1, 2], "low_freq_factor": 1,
                    "high_freq_factor": 4, "original_max_position_embeddings": 64
                });
                rope[field] = value.clone();
                check(config(json!({"rope_parameters": rope})));
            }
        }
    }
    assert!(built > 500, "only {built} of the configurations were built");
}
