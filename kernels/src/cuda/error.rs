//! Why something could not be done on a CUDA device: one line each, which names what to do where something can be done.

use thiserror::Error;

use crate::cpu::KernelError;

/// An error of the driver, of NVRTC, of the emulator, or of an argument.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CudaError {
    /// There is no driver, or no device.
    #[error("{0}")]
    Unavailable(String),
    /// The driver lacks a function, or is for a version of CUDA before [`super::LOWEST_DRIVER`].
    #[error("the CUDA driver is too old: {what}; install a driver for CUDA 12.8 or newer (R570), or use --device cpu")]
    OldDriver {
        /// What is missing, or its version.
        what: String,
    },
    /// A call of the driver failed.
    #[error("{call}: {code}{hint}")]
    Driver {
        /// The function.
        call: &'static str,
        /// Its result, by name.
        code: String,
        /// What to do, or nothing.
        hint: &'static str,
    },
    /// NVRTC is not on this machine.
    #[error("{0}")]
    NoNvrtc(String),
    /// A file of kernels was not compiled.
    #[error("{file} for {architecture}: {message}")]
    Compile {
        /// The file.
        file: &'static str,
        /// What it was compiled for.
        architecture: String,
        /// What the compiler says.
        message: String,
    },
    /// A kernel was not launched, or failed.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// Its name.
        kernel: &'static str,
        /// What happened.
        message: String,
    },
    /// Memory of the device was not allocated.
    #[error("{bytes} bytes of device memory cannot be allocated: {free} of {total} are free")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// How much is free.
        free: usize,
        /// How much there is.
        total: usize,
    },
    /// An argument does not fit the others; nothing was launched.
    #[error(transparent)]
    Argument(#[from] KernelError),
    /// A value of the step was out of range; found by a kernel.
    #[error("{0}")]
    Value(String),
}

/// `got` must be `expected`.
pub(super) fn check_eq(
    argument: &'static str,
    what: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), CudaError> {
    if expected == got { Ok(()) } else { Err(KernelError::Shape { argument, what, expected, got }.into()) }
}

/// There must be at least `needed` elements.
pub(super) fn check_len(argument: &'static str, needed: usize, got: usize) -> Result<(), CudaError> {
    if needed <= got { Ok(()) } else { Err(KernelError::TooShort { argument, needed, got }.into()) }
}

/// An option that cannot be.
pub(super) fn option(argument: &'static str, got: impl ToString, why: &'static str) -> CudaError {
    KernelError::Option { argument, got: got.to_string(), why }.into()
}

/// The size as the kernels count it.
pub(super) fn int(argument: &'static str, n: usize) -> Result<i32, CudaError> {
    i32::try_from(n).map_err(|_| option(argument, n, "must be below 2^31"))
}
