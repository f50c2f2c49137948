//! The plugin `transformers`: runs any Hugging Face causal language model by tracing its own Python code into a graph.
//!
//! `build` starts an embedded Python interpreter (`interpreter`) in which shims of torch and of parts of transformers
//! (`python/`) stand where the real ones would, and lets the model's unmodified code run once for each of two lengths. What
//! it computes is recorded (`recorder`), not computed. It reads the files that the request names, writes at most the
//! cache of compiled Python, and never runs a model whose code the user did not trust.

mod bytecode;
mod errors;
mod files;
mod interpreter;
mod native_graph;
mod native_host;
mod recorder;
mod whitelist;

use plugin_api::{BuildError, BuildRequest, Description, Model, Plugin};

pub use errors::Failure;
pub use interpreter::{Options, STACK, trace};

/// The plugin.
#[derive(Debug)]
pub struct Transformers;

plugin_api::export_plugin!(Transformers);

impl Plugin for Transformers {
    fn describe() -> Description {
        let mut description = plugin_api::description!("transformers", ["*"]);
        description.needs = vec!["transformers".to_owned(), "model-code".to_owned()];
        description
    }

    fn build(request: &BuildRequest) -> Result<Model, BuildError> {
        trace(request, &Options::default()).map_err(|failure| BuildError::new(failure.message))
    }
}
