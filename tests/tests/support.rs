//! Models of the zoo through the plugin `transformers`, by way of the library, in every way in which the engine can run them.
//!
//! A sample of all kinds runs always. `HOST_TEST_ZOO=llama,gemma2 cargo test -p host-tests --test support -- --nocapture` runs
//! others; `HOST_TEST_ZOO=all` runs the whole zoo (half an hour: some models have no kernels for all of their ops). What becomes
//! of them must be what `docs/support.md` says; with `UPDATE_GOLDEN=1` a run of the whole zoo writes that page.

use host_tests::support;
use host_tests::zoo::{self, Entry};

/// Of each kind a few, among them both models that bring their own code.
const SAMPLE: &str = "alder,aria_text,bailing_hybrid,cohere2,deepseek_v3,falcon__new_arch,gemma2,gemma3,gemma4_text__moe_kv,\
                      glm4_moe_lite,gpt2,gpt_oss,granitemoehybrid,helium,llama4_text,lfm2,mamba2";

#[test]
fn models_of_the_zoo_are_right_in_every_way_through_transformers() {
    let worker = env!("CARGO_BIN_EXE_plugin-worker");
    let named = std::env::var("HOST_TEST_ZOO");
    let names = named.as_deref().unwrap_or(SAMPLE);
    let entries: Vec<Entry> = match names {
        "all" => zoo::entries(),
        names => names.split(',').map(|name| zoo::entry(name).expect("is in the zoo")).collect(),
    };
    let rows = support::run(&entries, worker);
    if names == "all" {
        support::check_counts(&rows);
    }
    support::check_page(&rows, names == "all");
}
