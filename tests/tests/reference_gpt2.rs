//! The `gpt2` plugin through the reference executor, against the zoo.

mod reference;

#[test]
fn the_zoo_of_gpt2() {
    reference::check_family::<host_plugin_gpt2::Gpt2>(2);
}
