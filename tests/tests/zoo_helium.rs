//! The zoo entries of the `helium` plugin on both executors, held to torch's outputs.
//! One file a plugin: two plugins cannot be linked into one program.

host_tests::zoo_tests! { host_plugin_helium::Helium:
    helium "helium",
}
