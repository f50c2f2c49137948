//! CUDA kernels: the same work as `cpu`, on an NVIDIA device, or emulated for tests.
//!
//! What it does: finds the driver and NVRTC at run time (`driver`, `nvrtc`), compiles the files in `kernels/cuda` and caches
//! what comes of it, owns device memory, and launches kernels over views of that memory (`ops`). Every op checks shapes,
//! strides and sizes against the memory that it is given, as the CPU kernels do, and returns a [`CudaError`] that names the
//! argument. `emulated` runs the same files on the CPU.
//!
//! What it never does: link a library of CUDA, decide policy, or let the value of one output depend on what else is in the
//! batch: each output has one order of summation, and each file says which.
//!
//! Who calls it: `host::exec::cuda`, and `host doctor`.

mod cache;
mod device;
mod driver;
mod emulated;
mod error;
mod nvrtc;
mod ops;
mod source;

pub use device::{Args, Cuda, Device, Launch, Memory, Properties};
pub use driver::{DeviceInfo, Driver, LOWEST_DRIVER, device, driver};
pub use emulated::{EmulatedOptions, Sanitizer, emulated};
pub use error::CudaError;
pub use nvrtc::{Cubin, Nvrtc, cubin, nvrtc};
pub use ops::*;
pub use source::Module;
