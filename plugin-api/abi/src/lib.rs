//! The binary interface between `host` and an architecture plugin: one frozen root module that exchanges bytes.
//!
//! This crate holds nothing but the layout. What the bytes mean belongs to `plugin-api`, which wraps this crate for plugin
//! authors; the host's registry uses it to load plugins. Nobody else does.
//!
//! It is a crate of its own, with a version of its own, because abi_stable compares the *package version* of the crate
//! that defines a type: were the root module part of `plugin-api`, every new minor version of `plugin-api` would refuse all
//! plugins built before it. For the same reason **nothing here may change**: a field added to a prefix type makes a newer
//! host refuse every older plugin. Growth goes through the versioned bytes, or through [`RootModule::query`].

use std::ffi::c_void;

pub use abi_stable;
use abi_stable::StableAbi;
use abi_stable::library::RootModule as AbiRootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RVec};

/// The functions that a plugin exports. They neither unwind nor keep what they are handed.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootModuleRef, prefix_fields = RootModulePrefix)))]
pub struct RootModule {
    /// What the plugin is: a JSON object, see `plugin_api::Description`.
    pub describe: extern "C" fn() -> RVec<u8>,
    /// From a request (JSON, `plugin_api::BuildRequest`) to a model in its text form, or to a message in UTF-8.
    pub build: extern "C" fn(RSlice<'_, u8>) -> RResult<RVec<u8>, RVec<u8>>,
    /// Optional extensions by name; the name fixes the type behind the pointer. None are defined yet.
    #[sabi(last_prefix_field)]
    pub query: extern "C" fn(RStr<'_>) -> ROption<*const c_void>,
}

impl AbiRootModule for RootModuleRef {
    abi_stable::declare_root_module_statics! {RootModuleRef}
    const BASE_NAME: &'static str = "host_plugin";
    const NAME: &'static str = "host_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi_stable::prefix_type::PrefixTypeTrait;
    use std::fmt::Write as _;

    /// Everything that abi_stable compares when it loads a plugin, in a form a person can read.
    fn describe_layout() -> String {
        let layout = <RootModuleRef as StableAbi>::LAYOUT;
        let info = layout.item_info();
        let mut out = String::new();
        let _ = writeln!(out, "{} size {} align {}", layout.full_type(), layout.size(), layout.alignment());
        let _ = writeln!(out, "package {:?} nonzero {}", info.package_and_version(), layout.is_nonzero());
        let _ = writeln!(out, "symbol {}", abi_stable::library::ROOT_MODULE_LOADER_NAME);
        let _ = writeln!(out, "module version {}", RootModuleRef::VERSION_STRINGS);
        for field in layout.phantom_fields() {
            let module = field.layout();
            let _ = writeln!(
                out,
                "{}: {} size {} align {}",
                field.name(),
                module.full_type(),
                module.size(),
                module.alignment()
            );
            let _ = writeln!(out, "package {:?}", module.item_info().package_and_version());
            let _ = writeln!(out, "{:?} {}", module.repr_attr(), module.data());
        }
        // A patch release of abi_stable is compatible by its own rule.
        out.replace(abi_stable_version(), "0.11.x")
    }

    fn abi_stable_version() -> &'static str {
        <RVec<u8> as StableAbi>::LAYOUT.item_info().package_and_version().1
    }

    /// The printed layout shows no generic arguments; this does not compile if one of them changes.
    #[test]
    fn the_signatures_are_frozen() {
        extern "C" fn describe() -> RVec<u8> {
            RVec::new()
        }
        extern "C" fn build(_: RSlice<'_, u8>) -> RResult<RVec<u8>, RVec<u8>> {
            RResult::ROk(RVec::new())
        }
        extern "C" fn query(_: RStr<'_>) -> ROption<*const c_void> {
            ROption::RNone
        }
        let module: RootModuleRef = RootModule { describe, build, query }.leak_into_prefix();
        assert!(module.describe()().is_empty());
        assert_eq!(module.build()(RSlice::EMPTY), RResult::ROk(RVec::new()));
        assert_eq!(module.query()(RStr::empty()), ROption::RNone);
    }

    /// The layout is frozen. If this fails, undo the change that broke it; do not accept the new output.
    #[test]
    fn the_layout_is_frozen() {
        let golden = include_str!("layout.golden");
        assert_eq!(describe_layout().trim_end(), golden.trim_end(), "the root module's layout must never change");
    }
}
