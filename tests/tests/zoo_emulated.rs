//! Models of the zoo on the emulated CUDA device, through `Llm::load` and the engine; see `ways.rs`. What runs there is what
//! runs on a GPU: the same plan, kernels and executor. Slow, so it is a sample of kinds. Others are tried by
//! `HOST_TEST_ZOO=mamba2,lfm2 cargo test -p host-tests --test zoo_emulated named -- --nocapture` (`all`: the whole zoo); with
//! `UPDATE_GOLDEN=1` that writes their rows of docs/cuda-support.md.

use host_tests::emulated;
use host_tests::ways::{check_emulated, check_emulated_draws};

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

#[test]
fn tokens_drawn_on_the_device_are_those_of_the_sampler() {
    check_emulated_draws("llama", WORKER);
}

/// Each gives torch's ids, or the host says that no plan can be made: then no kernel is missing. As docs/cuda-support.md says.
#[test]
fn named_entries_are_right_or_have_no_plan() {
    let named = std::env::var("HOST_TEST_ZOO").unwrap_or_else(|_| "mamba2,lfm2".into());
    let names: Vec<String> = match named.as_str() {
        "all" => emulated::names(),
        names => names.split(',').map(str::to_owned).collect(),
    };
    emulated::check(&names, WORKER);
}

#[test]
fn the_page_is_as_its_runs_wrote_it() {
    emulated::check_page();
}
