//! Helpers of the end-to-end tests.

pub mod executors;
pub use host_zoo as zoo;
