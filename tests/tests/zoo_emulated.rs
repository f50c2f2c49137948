//! Models of the zoo on the emulated CUDA device, through `Llm::load` and the engine; see `ways.rs`. What runs there is what
//! runs on a GPU: the same plan, kernels and executor. Slow, so it is a sample of kinds. Others are tried by
//! `HOST_TEST_ZOO=mamba2,lfm2 cargo test -p host-tests --test zoo_emulated named -- --nocapture` (`all`: the whole zoo).

use host_tests::ways::{check_emulated, try_emulated};
use host_tests::zoo;

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");

#[test]
fn llama() {
    check_emulated("llama", "native", WORKER);
}

#[test]
fn llama_of_bf16_weights() {
    check_emulated("llama__bf16_weights", "native", WORKER);
}

#[test]
fn gpt2() {
    check_emulated("gpt2", "native", WORKER);
}

#[test]
fn helium() {
    check_emulated("helium", "native", WORKER);
}

#[test]
fn qwen2_with_a_sliding_window() {
    check_emulated("qwen2__swa", "native", WORKER);
}

#[test]
fn gemma2_with_caps_and_windows() {
    check_emulated("gemma2", "transformers", WORKER);
}

#[test]
fn gpt_oss_with_experts_and_sinks() {
    check_emulated("gpt_oss", "transformers", WORKER);
}

#[test]
fn deepseek_v3_with_latent_attention_and_grouped_experts() {
    check_emulated("deepseek_v3", "transformers", WORKER);
}

#[test]
fn granitemoehybrid_with_running_states() {
    check_emulated("granitemoehybrid", "transformers", WORKER);
}

/// Each gives torch's ids, or the host says that no plan can be made: then no kernel is missing.
#[test]
fn named_entries_are_right_or_have_no_plan() {
    let named = std::env::var("HOST_TEST_ZOO").unwrap_or_else(|_| "mamba2,lfm2".into());
    let names: Vec<String> = match named.as_str() {
        "all" => zoo::entries().iter().map(|entry| entry.name.to_string()).collect(),
        names => names.split(',').map(str::to_owned).collect(),
    };
    for name in names {
        match try_emulated(&name, WORKER) {
            Ok(()) => println!("{name}: right"),
            Err(why) => {
                println!("{name}: {why}");
                assert!(!why.contains("CUDA executor"), "{name}: {why}");
            }
        }
    }
}
