//! The zoo through `Llm::load`, the plugins' shared libraries and the engine, on both executors; see `ways.rs`.

host_tests::engine_tests! {
    gpt2 "gpt2",
    gpt2_untied_scaled "gpt2__untied_scaled",
    helium "helium",
    llama "llama",
    llama_bf16_weights "llama__bf16_weights",
    llama_bias "llama__bias",
    llama_head_dim32 "llama__head_dim32",
    llama_legacy_cfg "llama__legacy_cfg",
    llama_rope_dynamic "llama__rope_dynamic",
    llama_rope_linear "llama__rope_linear",
    llama_rope_llama3 "llama__rope_llama3",
    llama_rope_yarn "llama__rope_yarn",
    llama_sharded "llama__sharded",
    llama_tied_gqa1 "llama__tied_gqa1",
    mistral "mistral",
    mistral_no_swa "mistral__no_swa",
    qwen2 "qwen2",
    qwen2_legacy_cfg "qwen2__legacy_cfg",
    qwen2_swa "qwen2__swa",
}

#[test]
fn a_cache_of_int8() {
    // Grouped heads, a sliding window, and layer norms with heads of their own.
    for name in ["llama__tied_gqa1", "qwen2__swa", "gpt2"] {
        host_tests::ways::check_int8_cache(name, WORKER);
    }
}
