//! Passes, plans and kernels against the reference: whatever `graph` and `exec::cpu` make of a graph must mean
//! what the definitions say. Nothing here needs a model or a plugin.

mod device;
mod hostile;
mod kernels;
mod packed;
mod passes;
mod plans;
mod primitives;
mod quantised;
mod random;
mod support;
mod traced;
