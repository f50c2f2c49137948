//! The `llama` plugin through the reference executor, against the zoo.

mod reference;

#[test]
fn the_zoo_of_llama() {
    reference::check_family::<host_plugin_llama::Llama>(16);
}
