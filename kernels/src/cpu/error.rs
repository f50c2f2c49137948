//! The one error type of the kernels. Every variant names the argument at fault; none is raised by data, only by shapes,
//! options and indices, so a checked plan never sees one.

use thiserror::Error;

/// Why a kernel refused its arguments, or why a context could not be built. Nothing was computed when one is returned.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum KernelError {
    /// Two sizes that must agree do not.
    #[error("{argument}: {what} is {got}, expected {expected}")]
    Shape {
        /// The argument at fault.
        argument: &'static str,
        /// Which of its sizes.
        what: &'static str,
        /// The size that the other arguments ask for.
        expected: usize,
        /// The size it has.
        got: usize,
    },
    /// The stride of an operand is smaller than its columns.
    #[error("{argument}: row stride {stride} is smaller than its {cols} columns")]
    Stride {
        /// The argument at fault.
        argument: &'static str,
        /// Its row stride, in elements.
        stride: usize,
        /// Its columns.
        cols: usize,
    },
    /// A slice is shorter than its shape says.
    #[error("{argument}: needs {needed} elements, has {got}")]
    TooShort {
        /// The argument at fault.
        argument: &'static str,
        /// Elements that the shape needs.
        needed: usize,
        /// Elements that there are.
        got: usize,
    },
    /// The scratch space is too small for this input.
    #[error("scratch: holds {capacity} bytes, this input needs {needed}: allocate it for the largest step")]
    Scratch {
        /// Bytes that this call needs.
        needed: usize,
        /// Bytes that there are.
        capacity: usize,
    },
    /// The element type is not one that this kernel takes here.
    #[error("{argument}: dtype {got} cannot be used here: {why}")]
    Dtype {
        /// The argument at fault.
        argument: &'static str,
        /// Its element type.
        got: &'static str,
        /// What would be possible.
        why: &'static str,
    },
    /// Bytes of a weight are not aligned to its element type.
    #[error("{argument}: address is not a multiple of {align} bytes: copy the tensor to aligned memory")]
    Misaligned {
        /// The argument at fault.
        argument: &'static str,
        /// The alignment of its element type.
        align: usize,
    },
    /// An index points outside of what it indexes.
    #[error("{argument}: index {index} at place {place} is outside 0..{limit}")]
    Index {
        /// The argument at fault.
        argument: &'static str,
        /// Where in the argument the index stands.
        place: usize,
        /// The index.
        index: u64,
        /// The first index that is too large.
        limit: usize,
    },
    /// An option has a value that means nothing.
    #[error("{argument}: {why} (got {got})")]
    Option {
        /// The argument at fault.
        argument: &'static str,
        /// The value given.
        got: String,
        /// Which values are possible.
        why: &'static str,
    },
    /// Two arguments, or two parts of one, overlap where they must not.
    #[error("{argument}: part {first} and part {second} overlap")]
    Overlap {
        /// The argument at fault.
        argument: &'static str,
        /// One part.
        first: usize,
        /// The other.
        second: usize,
    },
    /// The processor lacks an instruction set that was asked for.
    #[error("this processor does not have {isa}")]
    Isa {
        /// The instruction set.
        isa: &'static str,
    },
    /// The operating system would not start a thread.
    #[error("cannot start worker thread {index}: {reason}")]
    Thread {
        /// Which of the pool's threads.
        index: usize,
        /// The operating system's message.
        reason: String,
    },
}

/// `Ok` if `got == expected`, else a [`KernelError::Shape`].
pub(crate) fn check_eq(
    argument: &'static str,
    what: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), KernelError> {
    if expected == got { Ok(()) } else { Err(KernelError::Shape { argument, what, expected, got }) }
}

/// `Ok` if `got >= needed`, else a [`KernelError::TooShort`].
pub(crate) fn check_len(argument: &'static str, needed: usize, got: usize) -> Result<(), KernelError> {
    if got >= needed { Ok(()) } else { Err(KernelError::TooShort { argument, needed, got }) }
}
