//! The `gpt2` architecture.
