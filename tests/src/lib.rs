//! Helpers of the end-to-end tests.

pub mod emulated;
pub mod executors;
pub mod gguf;
pub mod hidden;
pub mod library;
pub mod quality;
pub mod support;
pub mod ways;
pub use host_zoo as zoo;
