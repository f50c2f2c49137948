//! How a [`Plugin`] becomes a shared library: `export_plugin!` and the functions behind the root module.
//!
//! The root module itself is frozen in the crate `host-plugin-abi`. This file turns its bytes into types and back, and makes
//! sure that no panic crosses the border: unwinding out of an `extern "C"` function aborts the process. Plugin authors see
//! neither abi_stable nor `unsafe`; the host calls none of this, it speaks bytes (`host::registry`).
#![allow(unsafe_code)] // two calls of abi_stable whose contract the type system cannot express

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use host_plugin_abi::abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use host_plugin_abi::abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use host_plugin_abi::abi_stable::std_types::{ROption, RResult, RSlice, RStr, RVec};
use host_plugin_abi::{RootModule, RootModuleRef};
use serde::{Deserialize, Serialize};

use crate::{BuildError, BuildRequest, Description, Model};

/// An architecture plugin: a pure function from a model's configuration to its graphs. Export it with
/// [`export_plugin!`](crate::export_plugin).
pub trait Plugin {
    /// What the plugin is; see [`description!`](crate::description).
    fn describe() -> Description;

    /// Builds the model that the configuration describes. Runs in a process of its own, which a plugin must
    /// not leave: no files, no network. Must give
    /// the same model for the same request.
    fn build(request: &BuildRequest) -> Result<Model, BuildError>;
}

/// What `describe` returns on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DescribeReply {
    /// The plugin panicked; the message.
    Panicked {
        /// What it panicked with and where, starting with [`PANICKED`].
        error: String,
    },
    /// As asked.
    Description(Description),
}

/// How the error value of a plugin that panicked starts.
pub const PANICKED: &str = "panicked at ";

/// How the error value of a plugin starts that does not support a model ([`BuildError::Unsupported`]).
pub const UNSUPPORTED: &str = "unsupported: ";

/// Makes the crate's library a plugin: `export_plugin!(MyPlugin);`, once, with a type that implements
/// [`Plugin`](crate::Plugin), in a crate of type `cdylib`.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        const _: () = {
            // The symbol that the host looks up. Its name is fixed by abi_stable.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HOST_PLUGIN: $crate::__private::Header = $crate::__private::header::<$plugin>();
        };
    };
}

/// For the expansion of `export_plugin!` only.
pub type Header = LibHeader;

/// For the expansion of `export_plugin!` only.
pub const fn header<P: Plugin>() -> Header {
    // SAFETY: `constructor` returns a pointer that was cast from a `RootModuleRef` and from nothing else.
    unsafe { LibHeader::from_constructor::<RootModuleRef>(constructor::<P>, CheckTypeLayout::Yes) }
}

extern "C" fn constructor<P: Plugin>() -> RootModuleResult {
    let module = RootModule { describe: describe::<P>, build: build::<P>, query }.leak_into_prefix();
    // SAFETY: erases the type; the loader checks the layout in the header before it casts back.
    RResult::ROk(unsafe { module.to_prefix_ref().cast() })
}

extern "C" fn describe<P: Plugin>() -> RVec<u8> {
    let reply = match catch(P::describe) {
        Ok(description) => DescribeReply::Description(description),
        Err(error) => DescribeReply::Panicked { error },
    };
    serde_json::to_vec(&reply).unwrap_or_default().into()
}

extern "C" fn build<P: Plugin>(request: RSlice<'_, u8>) -> RResult<RVec<u8>, RVec<u8>> {
    let built = catch(|| {
        let request: BuildRequest = serde_json::from_slice(request.as_slice())
            .map_err(|e| format!("the host's request is not readable: {e}"))?;
        P::build(&request).map(|model| model.to_text()).map_err(|e| match e {
            BuildError::Unsupported { .. } => format!("{UNSUPPORTED}{e}"),
            e => e.to_string(),
        })
    });
    match built.and_then(|result| result) {
        Ok(text) => RResult::ROk(text.into_bytes().into()),
        Err(message) => RResult::RErr(message.into_bytes().into()),
    }
}

extern "C" fn query(_name: RStr<'_>) -> ROption<*const c_void> {
    ROption::RNone
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Runs `f`; a panic becomes a message with the place. The payload alone would not tell the place, so a hook notes it.
fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
                let message = info.payload_as_str().unwrap_or("no message");
                let note = format!("{PANICKED}{place}: {message}");
                *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(note);
            }
            previous(info);
        }));
    });
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(false);
    result.map_err(|payload| {
        // Dropping the payload may panic as well, and would then unwind into the host.
        std::mem::forget(payload);
        let note = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        note.unwrap_or_else(|| format!("{PANICKED}an unknown place"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_plugin_abi::abi_stable::library::ROOT_MODULE_LOADER_NAME;

    struct Panics;
    impl Plugin for Panics {
        fn describe() -> Description {
            panic!("no {}", "name")
        }
        fn build(_: &BuildRequest) -> Result<Model, BuildError> {
            let empty: Vec<u32> = Vec::new();
            Err(BuildError::new(format!("{}", empty[1])))
        }
    }

    #[test]
    fn a_panic_becomes_an_error_that_names_the_place() {
        let reply: DescribeReply = serde_json::from_slice(&describe::<Panics>()).unwrap();
        let DescribeReply::Panicked { error } = reply else { panic!("{reply:?}") };
        assert!(error.starts_with(PANICKED) && error.contains("abi.rs:") && error.ends_with(": no name"), "{error}");

        let request = serde_json::to_vec(&BuildRequest::new(serde_json::json!({}), vec![])).unwrap();
        let error = build::<Panics>(RSlice::from_slice(&request)).into_result().unwrap_err();
        let error = String::from_utf8(error.into()).unwrap();
        assert!(error.starts_with(PANICKED) && error.contains("index out of bounds"), "{error}");
    }

    #[test]
    fn an_unreadable_request_is_an_error() {
        let error = build::<Panics>(RSlice::from_slice(b"rubbish")).into_result().unwrap_err();
        assert!(String::from_utf8(error.into()).unwrap().contains("not readable"));
    }

    /// The macro writes the name out, because `export_name` takes only a literal.
    #[test]
    fn the_exported_symbol_is_the_one_that_abi_stable_looks_up() {
        assert_eq!(ROOT_MODULE_LOADER_NAME, "_1as_0lib_1header_0root_bmodule_bloader");
    }

    #[test]
    fn the_loader_accepts_the_header() {
        static HEADER: Header = header::<Panics>();
        let module = HEADER.init_root_module::<RootModuleRef>().unwrap();
        assert_eq!(module.query()(RStr::from_str("anything")), ROption::RNone);
    }
}
