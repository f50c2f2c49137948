//! The engine: decides what runs in each step, chooses tokens, and tells clients. One OS thread owns
//! everything (`step.rs`); the rest of the program talks to it through [`EngineHandle`] over bounded
//! channels. It never sees text, JSON or HTTP. Called by `llm`.
//!
//! An engine either generates or pools ([`Runner`]): its executor gives logits, or hidden states.
//!
//! [`scheduler`] is the policy and [`blocks`] the KV cache's bookkeeping; both are pure, so that property
//! tests drive them. [`sampler`] turns logits into tokens. Whatever else runs, however a prompt is cut
//! into chunks and whatever the prefix cache held: a request's tokens are the same.

pub mod blocks;
mod crew;
mod guide;
mod handle;
mod params;
mod pool;
pub mod sampler;
pub mod scheduler;
mod sequence;
pub mod sim;
mod stats;
mod step;
#[cfg(test)]
mod tests;

pub use guide::{Guide, GuideError, Restriction};
pub use handle::{Engine, EngineConfig, EngineError, EngineHandle, EventStream, Runner, SubmitError};
pub use params::{EngineEvent, EngineRequest, FinishReason, SamplingParams, Timings, TokenLogprobs};
pub use pool::Pooling;
pub use sequence::Sequence;
pub use stats::{EngineState, STEP_BUCKETS, Stats};
