//! The `helium` plugin through the reference executor, against the zoo.

mod reference;

#[test]
fn the_zoo_of_helium() {
    reference::check_family::<host_plugin_helium::Helium>(1);
}
