//! Kernels: plain functions over slices, with no policy.
//!
//! `cpu` computes on slices, `cuda` on the memory of a device. Nothing here knows of models, graphs, sequences or servers; the executors of
//! `host` call it. Unsafe code is allowed in this crate (vector intrinsics, disjoint writes from several threads, calls of a driver);
//! every block says why it is sound.
#![allow(unsafe_code)]

pub mod cpu;
pub mod cuda;
