//! For the tests of a plugin: builds a model as the host would, and compares it with a golden file.
//!
//! ```no_run
//! # use plugin_api::{BuildError, BuildRequest, Description, Model, Plugin};
//! # struct Mine;
//! # impl Plugin for Mine {
//! #     fn describe() -> Description { plugin_api::description!("mine", ["MineForCausalLM"]) }
//! #     fn build(_: &BuildRequest) -> Result<Model, BuildError> { Err(BuildError::new("no")) }
//! # }
//! # fn main() {
//! // tests/golden.rs: reads tests/tiny.json, a config.json, and compares with tests/tiny.graph
//! plugin_api::testkit::golden::<Mine>(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny.json"));
//! # }
//! ```
//!
//! Never used by the host. The functions panic, as assertions do.

use std::path::Path;

use crate::{BuildRequest, IrVersion, Model, Plugin, spec};

/// Set to write golden files instead of comparing with them.
pub const UPDATE: &str = "UPDATE_GOLDEN";

/// Builds the model of a config.json, given as text, and checks all that the host would: that the description and the graph
/// are well formed, that the text form reads back as the same model, and that a second build gives the same.
#[track_caller]
pub fn build<P: Plugin>(config: &str) -> Model {
    let description = P::describe();
    assert!(!description.name.is_empty(), "the description has no name");
    assert!(!description.architectures.is_empty(), "the description names no architecture");
    assert_eq!(description.ir.parse(), Ok(IrVersion::CURRENT), "the description's `ir` must be IrVersion::CURRENT");
    let config = serde_json::from_str(config).unwrap_or_else(|e| panic!("the configuration is not JSON: {e}"));
    let request = BuildRequest::new(config, Vec::new());
    let model = P::build(&request).unwrap_or_else(|e| panic!("the plugin does not build this configuration: {e}"));
    spec::verify(&model).unwrap_or_else(|e| panic!("the graph is wrong: {e}"));
    let text = model.to_text();
    let read = Model::parse(&text).unwrap_or_else(|e| panic!("the text form does not read back: {e}"));
    assert_eq!(read.to_text(), text, "the text form reads back as another model");
    let again = P::build(&request).unwrap_or_else(|e| panic!("the second build fails: {e}"));
    assert_eq!(again.to_text(), text, "the second build of the same configuration gives another model");
    model
}

/// [`build`]s the model of the config.json at `config` and compares its text form with the file beside it that ends in
/// `.graph`. `UPDATE_GOLDEN=1 cargo test` writes that file; look at the difference before you commit it.
#[track_caller]
pub fn golden<P: Plugin>(config: impl AsRef<Path>) {
    let config = config.as_ref();
    let read = |path: &Path| std::fs::read_to_string(path);
    let text = read(config).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
    let model = build::<P>(&text).to_text();
    let golden = config.with_extension("graph");
    if std::env::var_os(UPDATE).is_some() {
        return std::fs::write(&golden, model).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
    }
    let expected = read(&golden).unwrap_or_else(|e| panic!("{}: {e}; write it with {UPDATE}=1", golden.display()));
    if let Some((line, (now, then))) = first_difference(&model, &expected) {
        panic!(
            "the graph differs from {} in line {line}:\n  expected: {then}\n  built:    {now}\n\
             If that is meant, write the file anew with {UPDATE}=1.",
            golden.display()
        );
    }
}

/// First line (from 1) in which two texts differ.
fn first_difference<'a>(a: &'a str, b: &'a str) -> Option<(usize, (&'a str, &'a str))> {
    let (mut a, mut b) = (a.lines(), b.lines());
    for line in 1.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (x, y) if x == y => {}
            (x, y) => return Some((line, (x.unwrap_or("(nothing)"), y.unwrap_or("(nothing)")))),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn differences_are_found_at_the_end_too() {
        assert_eq!(first_difference("a\nb\n", "a\nb"), None);
        assert_eq!(first_difference("a\nb", "a"), Some((2, ("b", "(nothing)"))));
        assert_eq!(first_difference("a\nb", "a\nc"), Some((2, ("b", "c"))));
    }
}
