//! Kernels: plain functions over slices, with no policy.
//!
//! `cpu` is the only backend so far. Nothing here knows of models, graphs, sequences or servers; the executors of
//! `host` call it. Unsafe code is allowed in this crate (vector intrinsics, disjoint writes from several threads);
//! every block says why it is sound.
#![allow(unsafe_code)]

pub mod cpu;
