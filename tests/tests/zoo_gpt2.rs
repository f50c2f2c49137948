//! The zoo entries of the `gpt2` plugin on both executors, held to torch's outputs.
//! One file a plugin: two plugins cannot be linked into one program.

host_tests::zoo_tests! { host_plugin_gpt2::Gpt2:
    gpt2 "gpt2",
    gpt2_untied_scaled "gpt2__untied_scaled",
}
