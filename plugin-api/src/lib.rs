//! What an architecture plugin of `host` depends on.
//!
//! A plugin is a pure function from a model's `config.json` to a [`Model`]: one or more [`Graph`]s in
//! SSA form, built with a [`Builder`], checked by [`spec::verify`], carried as text ([`Model::to_text`]).
//! Nothing in this crate computes: the host optimises and executes graphs.
//!
//! Architecture invariants:
//! - **The meaning of a graph is what it computes for one sequence, given whole**, from position 0, with
//!   `T` its tokens. Batching sequences, caching keys and values, and chunking are the host's business
//!   and never change a result.
//! - Every composite op has exactly one [definition](define::define) in primitive ops.
//! - Every node has one output, whose type follows from its op and the types of its inputs
//!   ([`spec::infer`]); a graph that was not verified is never executed.

mod abi;
mod builder;
pub mod config;
pub mod define;
mod dim;
mod layers;
mod model;
pub mod op;
mod request;
pub mod rope;
pub mod spec;
pub mod testkit;
mod text;
mod types;

pub use abi::{DescribeReply, PANICKED, Plugin, UNSUPPORTED};
pub use builder::{AttentionOptions, Builder};
pub use dim::{Dim, DimError};
pub use model::{Graph, KvState, LengthDependence, Model, Node, Value};
pub use op::{Activation, ConstData, InputKind, Op};
pub use request::{BuildError, BuildRequest, Description, IrVersion, ModelCode, Sources, TensorInfo};
pub use spec::SpecError;
pub use text::ParseError;
pub use types::{DType, Shape, Type};

/// Major version of the graph IR: a host reads only its own.
pub const IR_MAJOR: u32 = 1;
/// Minor version of the graph IR: grows with every new op or attribute; a host reads every older one.
pub const IR_MINOR: u32 = 1;

/// For the expansion of `export_plugin!` only.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi::{Header, header};
}
