//! The wire format: requests as they arrive (serde, no range checks) and answers as they leave. It never decides
//! anything; `validate` turns raw requests into work, the handlers fill the answers.

pub(crate) mod chat;
pub(crate) mod common;
pub(crate) mod completion;
pub(crate) mod describe;
pub(crate) mod fields;
pub(crate) mod pooling;
pub(crate) mod sampling;
pub(crate) mod tokenize;
