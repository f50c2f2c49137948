//! What every kernel takes first: the instruction set and the thread pool. Built once at start-up by the executor.

use std::sync::Arc;

use super::{Isa, KernelError, Pool};

/// The instruction set to use and the threads to use it on.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
}

/// How to build a [`Cpu`].
#[derive(Debug, Clone, Copy)]
pub struct CpuOptions {
    /// Threads that compute, the caller included. At least 1.
    pub threads: usize,
    /// `None`: the best that this processor has. Tests ask for the others.
    pub isa: Option<Isa>,
    /// Bind each worker thread (not the caller) to one processor.
    pub pin: bool,
}

impl Cpu {
    /// The best instruction set, `threads` threads, no pinning.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        Self::with_options(CpuOptions { threads, isa: None, pin: false })
    }

    /// As [`Cpu::new`], with a choice of instruction set and pinning.
    pub fn with_options(options: CpuOptions) -> Result<Self, KernelError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(KernelError::Isa { isa: isa.name() });
        }
        Ok(Self { isa, pool: Arc::new(Pool::new(options.threads, options.pin)?) })
    }

    /// The instruction set in use: one that this processor has.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The thread pool; what else has work between two kernels may use it too.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}
