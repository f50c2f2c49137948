//! Golden files from config.json to the plan, with input and expected output together: `tests/golden/*.txt`.
//!
//! The graphs come from the plugins' shared libraries, as they do when a model is loaded. `UPDATE_GOLDEN=1 cargo test -p
//! host-tests --test plans` writes the files anew; look at the difference before you commit it.

use std::fmt::Write as _;
use std::path::Path;

use host::exec::{Dtype, Quantization, cpu};
use host::graph::{self, PASSES};
use host::hub::Weights;
use host::registry::{ModelImpl, Registry};
use host_tests::{library, zoo};
use plugin_api::{BuildRequest, TensorInfo, testkit};

/// A checkpoint without tensors: a plan is made from the types of the weights, which here are those of `--dtype`.
const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// What is made of a configuration, each part under a heading.
fn report(registry: &Registry, config: &str) -> String {
    let config: serde_json::Value = serde_json::from_str(config).expect("the configuration is JSON");
    let architecture = config["architectures"][0].as_str().expect("the configuration names its class").to_owned();
    let plugin = registry.select(&ModelImpl::Native, &architecture).expect("a plugin");
    let model = registry.build_model(&plugin, &BuildRequest::new(config, vec![])).expect("builds");
    let optimised = graph::optimise(&model.graphs["decode"]).expect("optimises");
    let weights = Weights::from_static(NO_TENSORS).expect("an empty checkpoint");
    let (_, plan) = cpu::plan(&optimised, &weights, Dtype::Bfloat16, None).expect("plans");
    let passes: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
    let mut out = model.to_text();
    let _ = writeln!(out, "{}\n# after {}", testkit::SEPARATOR, passes.join(", "));
    let _ = writeln!(out, "{}", optimised.to_text().trim_end());
    let _ = writeln!(out, "{}\n# plan of the CPU executor, bfloat16", testkit::SEPARATOR);
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let (tokens, rows) = (buffer.per_token, buffer.per_selected);
        let _ = writeln!(out, "buffer b{i} {:?} {tokens} a token, {rows} a row", buffer.elem);
    }
    let _ = write!(out, "{plan}");
    out
}

fn check(name: &str) {
    let registry = Registry::new(library::registry(env!("CARGO_BIN_EXE_plugin-worker"))).expect("a registry");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"));
    testkit::compare(&path, |config| report(&registry, config));
}

/// The plan of a zoo entry with its buffers and statics, as text.
fn plan_of(registry: &Registry, name: &str, which: &ModelImpl) -> String {
    let entry = zoo::entry(name).expect("is in the zoo");
    let config = entry.config().expect("has a configuration");
    let architecture = config["architectures"][0].as_str().expect("the configuration names its class").to_owned();
    let tensors = entry.tensors().expect("has tensors");
    let tensors = tensors.into_iter().map(|(name, dtype, shape)| TensorInfo { name, dtype, shape }).collect();
    let plugin = registry.select(which, &architecture).expect("a plugin");
    let model = registry.build_model(&plugin, &BuildRequest::new(config, tensors)).expect("builds");
    let optimised = graph::optimise(&model.graphs["decode"]).expect("optimises");
    let weights = Weights::from_static(NO_TENSORS).expect("an empty checkpoint");
    let with = |quantization| cpu::plan(&optimised, &weights, Dtype::Bfloat16, quantization).expect("plans").1;
    let plans = [None, Some(Quantization::Int8), Some(Quantization::Int4)].map(|q| text_of(&with(q)));
    plans.join("\n")
}

/// A plan with its buffers and statics.
fn text_of(plan: &cpu::Plan) -> String {
    let buffers = plan.buffers.iter().map(|b| format!("{b:?}\n")).collect::<String>();
    let statics = plan.statics.iter().map(|s| format!("{:?} {}\n", s.form, s.text)).collect::<String>();
    let states = plan.states.iter().map(|s| format!("{} of {}, {}, {:?}\n", s.heads, s.key_dim, s.value_dim, s.window));
    format!("{buffers}{statics}{}{plan}", states.collect::<String>())
}

/// The same calls in the same order on the same buffers, whoever wrote the graph.
fn traced_as_native(name: &str) {
    let worker = env!("CARGO_BIN_EXE_plugin-worker");
    let registry = Registry::new(library::registry_with_transformers(worker)).expect("a registry");
    let native = plan_of(&registry, name, &ModelImpl::Native);
    let traced = plan_of(&registry, name, &ModelImpl::Transformers);
    let lines = || native.lines().zip(traced.lines()).enumerate();
    let first = lines().find(|(_, (a, b))| a != b);
    assert!(
        native == traced,
        "{name}: the plans of the native plugin and of transformers differ, first at {first:#?}\n{native}\n---\n{traced}"
    );
}

#[test]
fn a_traced_llama_plans_as_the_native_one() {
    traced_as_native("llama");
}

#[test]
fn a_traced_gpt2_plans_as_the_native_one() {
    traced_as_native("gpt2");
}

#[test]
fn a_traced_helium_plans_as_the_native_one() {
    traced_as_native("helium");
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn gpt2() {
    check("gpt2");
}

#[test]
fn helium() {
    check("helium");
}
