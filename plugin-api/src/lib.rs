//! Plugin API.
