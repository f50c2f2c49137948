//! Runs Python in the plugin's interpreter, in a thread with the stack that the host gives it.
#![allow(unreachable_pub, dead_code)] // the modules of a test are not a library, and no program needs all of it

use std::io::Write;
use std::path::Path;

use host_plugin_transformers::{Failure, Options, STACK, trace};
use plugin_api::{BuildRequest, Model, Sources};

/// Runs this code instead of the driver.
pub fn run(code: &str) -> Result<Model, Failure> {
    run_with(code, Sources::default())
}

/// The same, with files.
pub fn run_with(code: &str, sources: Sources) -> Result<Model, Failure> {
    let mut file = tempfile::NamedTempFile::with_suffix(".py").expect("a file");
    file.write_all(code.as_bytes()).expect("writes the script");
    run_file(file.path(), sources)
}

/// Runs this file instead of the driver.
pub fn run_file(file: &Path, sources: Sources) -> Result<Model, Failure> {
    let options = Options { script: Some(file.to_owned()), ..Options::default() };
    let request = BuildRequest { sources, ..BuildRequest::new(serde_json::json!({"n": [1, 2.5, null]}), Vec::new()) };
    let run = move || trace(&request, &options);
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread");
    thread.join().expect("the interpreter does not panic")
}
