//! Optimises graphs: what every architecture gets, whoever wrote its plugin.
//!
//! A pass is a pure function from graph to graph that keeps the meaning; all are listed in [`PASSES`] in
//! the order in which they run. Passes know no executor and no model name. Called by `llm` when a model
//! is loaded and by `host inspect`. Choosing kernels and buffers is not done here but in `exec`.

mod canonicalise;
mod constants;
mod cse;
mod dce;
pub(crate) mod elementwise;
mod embed;
mod fold;
mod fuse;
mod layout;
mod order;
mod recognise;
mod repeats;
mod rewrite;
pub mod rows;
mod select;

pub use embed::{EmbedError, embed};
use plugin_api::Graph;
use plugin_api::spec::{self, SpecError};

/// A named pass.
pub struct Pass {
    /// Its name, for `host inspect` and messages.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    run: fn(&Graph) -> Result<Graph, SpecError>,
}

impl Pass {
    /// Applies the pass to a verified graph.
    pub fn run(&self, graph: &Graph) -> Result<Graph, SpecError> {
        (self.run)(graph)
    }
}

/// Every pass, in order.
pub const PASSES: &[Pass] = &[
    Pass { name: "dce", about: "drops what no output needs", run: dce::run },
    Pass {
        name: "fold",
        about: "computes constant expressions, drops arithmetic that changes nothing",
        run: fold::run,
    },
    Pass {
        name: "layout",
        about: "tokens first, no unit dimensions: shape ops only where they are needed",
        run: layout::run,
    },
    Pass {
        name: "canonicalise",
        about: "drops shape ops and casts that change nothing, merges chains",
        run: canonicalise::run,
    },
    Pass { name: "cse", about: "computes equal expressions once", run: cse::run },
    Pass { name: "fold", about: "computes what the new layout made constant", run: fold::run },
    Pass { name: "repeats", about: "computes once what is repeated", run: repeats::run },
    Pass { name: "recognise", about: "recognises composites that are written out", run: recognise::run },
    Pass { name: "simple", about: "names activations that are one op", run: recognise::run_simple },
    Pass {
        name: "canonicalise",
        about: "drops shape ops and casts that change nothing, merges chains",
        run: canonicalise::run,
    },
    Pass { name: "cse", about: "computes equal expressions once", run: cse::run },
    // Before `fuse`, which counts readers.
    Pass { name: "dce", about: "drops what merging left behind", run: dce::run },
    Pass { name: "fuse", about: "recognises activation(gate) * up as one op", run: fuse::run },
    Pass {
        name: "select",
        about: "moves select_outputs up, so that less is computed for tokens without logits",
        run: select::run,
    },
    Pass { name: "canonicalise", about: "merges what the moves brought together", run: canonicalise::run },
    Pass { name: "cse", about: "joins what the moves made equal", run: cse::run },
    Pass { name: "order", about: "lists what outputs need in the order in which they need it", run: order::run },
];

/// Runs all passes. In debug builds the graph is verified after each one.
pub fn optimise(graph: &Graph) -> Result<Graph, SpecError> {
    let mut graph = graph.clone();
    for pass in PASSES {
        graph = pass.run(&graph)?;
        if cfg!(debug_assertions) {
            spec::verify_graph(pass.name, &graph)?;
        }
    }
    Ok(graph)
}
