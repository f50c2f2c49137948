//! Rotary frequencies against those of transformers 5.23.0 with torch 2.15.0 on CPU, and configurations that are refused.
//!
//! `data/rope.json` holds, per case, the config.json and what `LlamaRotaryEmbedding` made of it: the attention factor, and
//! the inverse frequencies by context length (0: any).

use std::collections::BTreeMap;

use plugin_api::rope::{RopeConfig, RopeModel};
use plugin_api::{BuildError, Builder, ConstData, Graph, InputKind, Op, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    attention_factor: f32,
    inv_freq: BTreeMap<u32, Vec<f32>>,
}

fn read(config: &serde_json::Value) -> Result<RopeConfig, BuildError> {
    let size = |name: &str, default: u64| config[name].as_u64().unwrap_or(default) as usize;
    let (head_dim, max_positions) = (size("head_dim", 8), size("max_position_embeddings", 4096));
    RopeConfig::from_config(config, RopeModel { head_dim, max_positions, default_theta: 10_000.0 })
}

/// The value at position 1 of a sequence of `length` tokens. With one token, flat vectors broadcast right.
fn eval(graph: &Graph, v: Value, length: u32) -> Vec<f32> {
    let node = graph.node(v);
    let inputs: Vec<Vec<f32>> = node.inputs.iter().map(|&i| eval(graph, i, length)).collect();
    let zip = |f: &dyn Fn(f32, f32) -> f32| {
        let (a, b) = (&inputs[inputs.len() - 2], &inputs[inputs.len() - 1]);
        (0..a.len().max(b.len())).map(|i| f(a[i % a.len()], b[i % b.len()])).collect()
    };
    match &node.op {
        Op::Input { kind: InputKind::Positions } => vec![1.0],
        Op::Input { kind: InputKind::ContextLength } => vec![length as f32],
        Op::Const { data: ConstData::F32(data), .. } => data.clone(),
        Op::Const { data: ConstData::I64(data), .. } => data.iter().map(|&x| x as f32).collect(),
        Op::Cast { .. } | Op::Reshape { .. } => inputs[0].clone(),
        Op::Gt => zip(&|a, b| f32::from(a > b)),
        Op::Add => zip(&|a, b| a + b),
        Op::Mul => zip(&|a, b| a * b),
        Op::Div => zip(&|a, b| a / b),
        Op::Pow => zip(&f32::powf),
        Op::Select => zip(&|a, b| if inputs[0] == [1.0] { a } else { b }),
        other => panic!("{other} is not expected in a rope table"),
    }
}

/// The node that the attention factor, if there is one, is applied to.
fn unscaled(graph: &Graph, v: Value) -> (Value, f32) {
    let node = graph.node(v);
    match node.op {
        Op::Mul => (node.inputs[0], eval(graph, node.inputs[1], 0)[0]),
        _ => (v, 1.0),
    }
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases: BTreeMap<String, Case> = serde_json::from_str(include_str!("data/rope.json")).unwrap();
    assert_eq!(cases.len(), 11);
    for (name, case) in cases {
        let rope = read(&case.config).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut b = Builder::new();
        let (cos, sin) = rope.tables(&mut b);
        let graph = b.finish().unwrap();
        let ((cos, factor), (sin, sin_factor)) = (unscaled(&graph, cos), unscaled(&graph, sin));
        assert_eq!((&graph.node(cos).op, &graph.node(sin).op), (&Op::Cos, &Op::Sin), "{name}");
        assert_eq!(factor, sin_factor, "{name}");
        assert!((factor - case.attention_factor).abs() <= 1.2e-7, "{name}: {factor} for {}", case.attention_factor);
        let angles = graph.node(cos).inputs[0];
        assert_eq!(graph.node(sin).inputs[0], angles, "{name}");
        for (length, expected) in case.inv_freq {
            let found = eval(&graph, angles, length);
            assert_eq!((found.len(), rope.rotary_dim()), (expected.len(), 2 * expected.len()), "{name}");
            for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
                // torch's vectorised pow is within an ulp or so.
                assert!((x - y).abs() <= 3e-7 * y, "{name}, length {length}, frequency {i}: {x:e} for {y:e}");
            }
        }
    }
}

#[test]
fn old_and_new_configurations_mean_the_same() {
    let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}});
    let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}});
    assert_eq!(read(&old).unwrap(), read(&new).unwrap());
    let plain = json!({"rope_theta": 1e4, "rope_scaling": null});
    assert_eq!(read(&plain).unwrap(), read(&json!({})).unwrap());
    // Parameters of other types have no effect; as in transformers, an old rope_scaling wins.
    let both = json!({"rope_scaling": {"type": "linear", "factor": 2, "finetuned": true, "beta_fast": 3},
                      "rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}});
    assert_eq!(read(&both).unwrap(), read(&new).unwrap());
}

#[test]
fn the_context_grows_with_the_factor() {
    let cases = [
        (json!({"rope_type": "default"}), 4096),
        (json!({"rope_type": "linear", "factor": 2.5}), 10_240),
        (json!({"rope_type": "dynamic", "factor": 4}), 16_384),
        (json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1024}), 4096),
        (json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 1024}), 4096),
        (json!({"rope_type": "yarn", "factor": 4}), 16_384),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                   "original_max_position_embeddings": 512}),
            4096,
        ),
        (
            json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 3, 4, 5],
                   "original_max_position_embeddings": 512}),
            4096,
        ),
    ];
    for (parameters, expected) in cases {
        let rope = read(&json!({"rope_parameters": parameters})).unwrap_or_else(|e| panic!("{parameters}: {e}"));
        assert_eq!(rope.context_length(), expected, "{parameters}");
    }
}

/// (rope parameters, parts of the message)
#[test]
fn what_is_not_known_is_an_error_that_says_so() {
    let llama3 =
        |high: f64| json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": high});
    let cases: &[(serde_json::Value, &[&str])] = &[
        (json!("default"), &["`rope_parameters` is \"default\"", "must be an object"]),
        (json!({"rope_type": "warp"}), &["`rope_parameters.rope_type` is \"warp\"", "longrope, llama3"]),
        (json!({"type": "su"}), &["`rope_parameters.type` is \"su\"", "longrope, llama3"]),
        (json!({"rope_type": 3}), &["`rope_parameters.rope_type` is 3", "must be a string"]),
        (json!({"rope_type": "linear"}), &["`rope_parameters.factor` is missing"]),
        (json!({"rope_type": "yarn"}), &["`rope_parameters.factor` is missing"]),
        (json!({"rope_type": "linear", "factor": "4"}), &["`rope_parameters.factor` is \"4\"", "must be a number"]),
        (json!({"rope_type": "linear", "factor": -1}), &["`rope_parameters.factor` is -1", "above 0"]),
        (json!({"rope_type": "linear", "factor": 1e300}), &["`rope_parameters.factor` is 1e+300", "context of"]),
        (json!({"rope_type": "linear", "factor": 1e-300}), &["`rope_parameters.factor` is 1e-300", "context of"]),
        (json!({"rope_theta": 0}), &["`rope_parameters.rope_theta` is 0", "above 0"]),
        (json!({"rope_theta": 1e-300}), &["not finite"]),
        (json!({"warp": 1}), &["`rope_parameters.warp` is 1", "known are rope_type"]),
        (json!({"full_attention": {"rope_type": "default"}}), &["`rope_parameters.full_attention`"]),
        (json!({"partial_rotary_factor": 1.5}), &["`rope_parameters.partial_rotary_factor` is 1.5", "at most 1"]),
        (json!({"partial_rotary_factor": 0.01}), &["rotate 0 elements"]),
        (
            json!({"rope_type": "dynamic", "factor": 2, "partial_rotary_factor": 0.25}),
            &["more than 2 rotated elements"],
        ),
        (json!({"rope_type": "llama3", "factor": 8}), &["`rope_parameters.low_freq_factor` is missing"]),
        (llama3(1.0), &["`rope_parameters.high_freq_factor` is 1.0", "above low_freq_factor"]),
        (
            json!({"rope_type": "yarn", "factor": 2, "truncate": 1}),
            &["`rope_parameters.truncate` is 1", "true or false"],
        ),
        (json!({"rope_type": "yarn", "factor": 2, "rope_theta": 1}), &["ramp"]),
        (json!({"rope_type": "yarn", "factor": 2, "beta_slow": -1}), &["ramp"]),
        (json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 1]}), &["`rope_parameters.long_factor` is missing"]),
        (
            json!({"rope_type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1, 1, 1]}),
            &["`rope_parameters.short_factor` is [1,1]", "4 numbers"],
        ),
        (
            json!({"rope_type": "longrope", "short_factor": [1, 1, 0, 1], "long_factor": [1, 1, 1, 1]}),
            &["`rope_parameters.short_factor`", "above 0"],
        ),
    ];
    for (parameters, expected) in cases {
        let error = read(&json!({"rope_parameters": parameters})).map(drop).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{parameters}: {error}");
    }
}
