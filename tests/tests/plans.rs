//! Golden files from config.json to the plan, with input and expected output together: `tests/golden/*.txt`.
//!
//! The graphs come from the plugins' shared libraries, as they do when a model is loaded. `UPDATE_GOLDEN=1 cargo test -p
//! host-tests --test plans` writes the files anew; look at the difference before you commit it.

use std::fmt::Write as _;
use std::path::Path;

use host::exec::{Dtype, cpu};
use host::graph::{self, PASSES};
use host::hub::Weights;
use host::registry::{ModelImpl, Registry};
use host_tests::library;
use plugin_api::{BuildRequest, testkit};

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
    let (_, plan) = cpu::plan(&optimised, &weights, Dtype::Bfloat16).expect("plans");
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
