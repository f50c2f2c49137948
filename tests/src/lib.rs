//! Helpers of the end-to-end tests.

pub mod executors;
pub mod zoo;
