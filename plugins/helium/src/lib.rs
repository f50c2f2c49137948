//! The `helium` architecture.
