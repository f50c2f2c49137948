//! For the tests of a plugin.
