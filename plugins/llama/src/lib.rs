//! The `llama` architecture.
