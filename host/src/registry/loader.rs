//! Loads a plugin's library and turns abi_stable's errors into one line each. Runs in the worker only, after the sandbox.
//!
//! A library is loaded once per worker and never unloaded. `RootModule::load_from_file` is not used: it keeps one module per
//! *type* and would hand out the first plugin for every later one.

use std::path::Path;

use host_plugin_abi::RootModuleRef;
use host_plugin_abi::abi_stable::library::{LibraryError, lib_header_from_path};
use serde::{Deserialize, Serialize};

use super::error::{Cause, one_line};

/// Why a library cannot be loaded, as it crosses the pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LoadError {
    kind: Kind,
    /// One line.
    message: String,
    /// All that abi_stable says, which can be hundreds of lines.
    full: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Kind {
    NotLoadable,
    NoEntryPoint,
    Layout,
}

/// Most of the full text that is sent.
const FULL_TEXT: usize = 64 << 10;

/// Loads the library at `path` and checks that its root module has the frozen layout.
pub(super) fn load(path: &Path) -> Result<RootModuleRef, LoadError> {
    lib_header_from_path(path)
        .and_then(|header| header.init_root_module::<RootModuleRef>())
        .map_err(|e| summarise(&e, path))
}

impl From<LoadError> for Cause {
    fn from(error: LoadError) -> Cause {
        tracing::debug!("a plugin cannot be loaded: {}", error.full);
        match error.kind {
            Kind::NotLoadable => Cause::NotLoadable(one_line(&error.message, 400)),
            Kind::NoEntryPoint => Cause::NoEntryPoint,
            Kind::Layout => Cause::Layout(one_line(&error.message, 400)),
        }
    }
}

fn summarise(error: &LibraryError, path: &Path) -> LoadError {
    let full: String = error.to_string().chars().take(FULL_TEXT).collect();
    let (kind, message) = match error {
        LibraryError::OpenError { err, .. } => (Kind::NotLoadable, chain(err.as_ref(), path)),
        LibraryError::GetSymbolError { .. } => (Kind::NoEntryPoint, String::new()),
        LibraryError::AbiInstability(_) => (Kind::Layout, differences(&full)),
        LibraryError::InvalidAbiHeader(found) => {
            let message = if found.magic_string == host_plugin_abi::abi_stable::library::AbiHeader::VALUE.magic_string {
                format!("abi_stable {}.{} instead of 0.11", found.abi_major, found.abi_minor)
            } else {
                "its entry point is not one of abi_stable".to_owned()
            };
            (Kind::Layout, message)
        }
        LibraryError::IncompatibleVersionNumber { expected_version, actual_version, .. } => {
            (Kind::Layout, format!("ABI version {actual_version} instead of {expected_version}"))
        }
        LibraryError::InvalidCAbi { .. } => (Kind::Layout, "its C calling convention differs".to_owned()),
        LibraryError::RootModule { .. } => (Kind::NotLoadable, "its entry point failed".to_owned()),
        other => (Kind::NotLoadable, other.to_string()),
    };
    LoadError { kind, message, full }
}

/// The error with its sources; the private copy's path, which tells the user nothing, is left out.
fn chain(error: &dyn std::error::Error, path: &Path) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text.replace(&format!("{}: ", path.display()), "")
}

/// From abi_stable's report, the first difference, and how many more there are.
fn differences(report: &str) -> String {
    let mut errors = report.match_indices("\nError:").map(|(at, mark)| &report[at + mark.len()..]);
    let Some(first) = errors.next() else { return "the layouts differ".to_owned() };
    let what = first.lines().next().unwrap_or_default();
    let after = |mark: &str| {
        let text = first.split_once(mark).map_or("", |(_, rest)| rest);
        one_line(text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default(), 80)
    };
    let mut text = format!("{what}, expected {}, found {}", after("\nExpected:\n"), after("\nFound:\n"));
    match errors.count() {
        0 => {}
        1 => text.push_str(", and 1 more difference"),
        n => text.push_str(&format!(", and {n} more differences")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn a_layout_report_becomes_one_line() {
        let report = "Compared <this>:\n x\n\nError:too many fields\nExpected:\n    3\nFound:\n    4\n\
                      \nError:mismatched type\nExpected:\n    a\n    b\nFound:\n    c\n";
        assert_eq!(differences(report), "too many fields, expected 3, found 4, and 1 more difference");
        assert_eq!(differences("?"), "the layouts differ");
    }
}
