//! For the tests of a plugin: builds a model as the host would, and compares it with a golden file or a checkpoint.
//!
//! ```no_run
//! # use plugin_api::{BuildError, BuildRequest, Description, Model, Plugin};
//! # struct Mine;
//! # impl Plugin for Mine {
//! #     fn describe() -> Description { plugin_api::description!("mine", ["MineForCausalLM"]) }
//! #     fn build(_: &BuildRequest) -> Result<Model, BuildError> { Err(BuildError::new("no")) }
//! # }
//! // In tests/golden.rs, inside a #[test]:
//! plugin_api::testkit::golden::<Mine>("tests/golden/tiny.txt");
//! ```
//!
//! Never used by the host. The functions panic, as assertions do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::{BuildRequest, IrVersion, Model, Plugin, TensorInfo, spec};

/// Set to write golden files instead of comparing with them.
pub const UPDATE: &str = "UPDATE_GOLDEN";

/// The line between configuration and graph in a golden file.
pub const SEPARATOR: &str = "---";

/// Builds the model of a config.json, given as text, and checks all that the host would: that the description and the graph
/// are well formed, that the text form reads back as the same model, and that a second build gives the same.
#[track_caller]
pub fn build<P: Plugin>(config: &str) -> Model {
    let config = serde_json::from_str(config).unwrap_or_else(|e| panic!("the configuration is not JSON: {e}"));
    build_request::<P>(&BuildRequest::new(config, Vec::new()))
}

/// Like [`build`], and checks that the graph reads every tensor of the checkpoint, in its shape, and no other.
#[track_caller]
pub fn checkpoint<P: Plugin>(config: Value, tensors: Vec<TensorInfo>) -> Model {
    let request = BuildRequest::new(config, tensors);
    let model = build_request::<P>(&request);
    let read: BTreeMap<&str, Vec<usize>> = model.graphs.values().flat_map(|g| g.weights()).collect();
    let stored: BTreeMap<&str, &Vec<usize>> = request.tensors.iter().map(|t| (t.name.as_str(), &t.shape)).collect();
    let mut problems = String::new();
    for (name, shape) in &read {
        let _ = match stored.get(name) {
            None => writeln!(problems, "  {name} {shape:?} is not in the checkpoint"),
            Some(s) if *s != shape => writeln!(problems, "  {name} is read as {shape:?}, the checkpoint has {s:?}"),
            Some(_) => Ok(()),
        };
    }
    for (name, shape) in stored.iter().filter(|(name, _)| !read.contains_key(**name)) {
        let _ = writeln!(problems, "  {name} {shape:?} of the checkpoint is not read");
    }
    assert!(problems.is_empty(), "graph and checkpoint do not fit:\n{problems}");
    model
}

/// Compares with a golden file: a config.json, a line `---`, and the text form of the model that the plugin builds from it.
/// The path is relative to the crate. `UPDATE_GOLDEN=1 cargo test` writes the second part, also where there is none yet;
/// look at the difference before you commit it.
#[track_caller]
pub fn golden<P: Plugin>(path: impl AsRef<Path>) {
    compare(path.as_ref(), |config| build::<P>(config).to_text());
}

/// Compares with a golden file whose second part is what `output` makes of the first.
#[track_caller]
pub fn compare(path: &Path, output: impl FnOnce(&str) -> String) {
    let file = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let separator = format!("\n{SEPARATOR}\n");
    let (config, expected) = match file.split_once(&separator) {
        Some((config, expected)) => (config, Some(expected)),
        None => (file.as_str(), None),
    };
    let built = output(config);
    if std::env::var_os(UPDATE).is_some() {
        let file = format!("{}{separator}{built}", config.trim_end());
        return std::fs::write(path, file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let Some(expected) = expected else {
        panic!("{} has no second part after a line `{SEPARATOR}`: write it with {UPDATE}=1", path.display());
    };
    if let Some(difference) = first_difference(&built, expected) {
        panic!("{} differs:\n{difference}If that is meant, write the file anew with {UPDATE}=1.", path.display());
    }
}

#[track_caller]
fn build_request<P: Plugin>(request: &BuildRequest) -> Model {
    let description = P::describe();
    assert!(!description.name.is_empty(), "the description has no name");
    assert!(!description.architectures.is_empty(), "the description names no architecture");
    assert_eq!(description.ir.parse(), Ok(IrVersion::CURRENT), "the description's `ir` must be IrVersion::CURRENT");
    let model = P::build(request).unwrap_or_else(|e| panic!("the plugin does not build this configuration: {e}"));
    spec::verify(&model).unwrap_or_else(|e| panic!("the graph is wrong: {e}"));
    let text = model.to_text();
    let read = Model::parse(&text).unwrap_or_else(|e| panic!("the text form does not read back: {e}"));
    assert_eq!(read.to_text(), text, "the text form reads back as another model");
    let again = P::build(request).unwrap_or_else(|e| panic!("the second build fails: {e}"));
    assert_eq!(again.to_text(), text, "the second build of the same configuration gives another model");
    model
}

/// The first line in which two texts differ, with the lines around it; `None` if there is none.
fn first_difference(built: &str, expected: &str) -> Option<String> {
    const CONTEXT: usize = 2;
    let (built, expected): (Vec<&str>, Vec<&str>) = (built.lines().collect(), expected.lines().collect());
    let at = (0..built.len().max(expected.len())).find(|&i| built.get(i) != expected.get(i))?;
    let mut out = String::new();
    for i in at.saturating_sub(CONTEXT)..at {
        let _ = writeln!(out, "{:5}   {}", i + 1, built[i]);
    }
    for (sign, lines) in [('-', &expected), ('+', &built)] {
        for (i, line) in lines.iter().enumerate().skip(at).take(1 + CONTEXT) {
            let _ = writeln!(out, "{:5} {sign} {line}", i + 1);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn a_difference_is_shown_with_context_and_found_at_the_end_too() {
        assert_eq!(first_difference("a\nb\n", "a\nb"), None);
        assert_eq!(first_difference("a", "a\nb").as_deref(), Some("    1   a\n    2 - b\n"));
        let shown = first_difference("1\n2\n3\nx\n5\n6\n7", "1\n2\n3\n4\n5\n6\n7").unwrap_or_default();
        assert_eq!(shown, "    2   2\n    3   3\n    4 - 4\n    5 - 5\n    6 - 6\n    4 + x\n    5 + 5\n    6 + 6\n");
    }
}
