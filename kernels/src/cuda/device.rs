//! What kernels run on: a trait with two implementations, a real device and the emulated one, and the memory of such a
//! device. Everything here is in bytes and addresses; `ops` knows shapes and checks them.

use std::sync::Arc;

use super::CudaError;
use super::source::Module;

/// Arguments of a kernel in order, each with the letter of its kind: `p` address, `f` float, `i` int, `l` 64-bit integer.
#[derive(Debug, Default, Clone)]
pub struct Args {
    letters: String,
    values: Vec<[u8; 8]>,
}

impl Args {
    fn push(mut self, letter: char, bytes: &[u8]) -> Self {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.letters.push(letter);
        self.values.push(value);
        self
    }

    pub(super) fn address(self, x: u64) -> Self {
        self.push('p', &x.to_ne_bytes())
    }

    pub(super) fn float(self, x: f32) -> Self {
        self.push('f', &x.to_ne_bytes())
    }

    pub(super) fn int(self, x: i32) -> Self {
        self.push('i', &x.to_ne_bytes())
    }

    pub(super) fn long(self, x: i64) -> Self {
        self.push('l', &x.to_ne_bytes())
    }

    /// The kinds.
    pub(super) fn letters(&self) -> &str {
        &self.letters
    }

    /// Where the values are, as drivers want them.
    pub(super) fn pointers(&mut self) -> Vec<*mut std::ffi::c_void> {
        self.values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect()
    }
}

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The file it is in.
    pub module: Module,
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory.
    pub shared: usize,
    /// What it is given.
    pub args: Args,
}

/// Most blocks along each side of a grid.
const MAX_GRID: [usize; 3] = [(1 << 31) - 1, 65535, 65535];

impl Launch {
    /// The grid as drivers want it; `None` if it is empty, so that there is nothing to do.
    pub(super) fn grid(&self) -> Result<Option<[u32; 3]>, CudaError> {
        if self.grid.contains(&0) {
            return Ok(None);
        }
        if let Some(side) = (0..3).find(|&i| self.grid[i] > MAX_GRID[i]) {
            let message = format!("{} blocks along side {side}, the limit is {}", self.grid[side], MAX_GRID[side]);
            return Err(CudaError::Kernel { kernel: self.kernel, message });
        }
        Ok(Some(self.grid.map(|n| n as u32)))
    }
}

/// What a device has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its name, for people.
    pub name: String,
    /// What kernels are compiled for, such as `sm_90a`.
    pub architecture: String,
    /// Processors that run blocks.
    pub multiprocessors: usize,
    /// The most shared memory of a block, in bytes.
    pub shared_memory: usize,
}

/// Something that has memory and runs kernels, one after the other in the order of the calls.
///
/// # Safety
/// Implementations give out memory that stays where it is until it is freed, and run launches, copies and frees in order.
pub unsafe trait Device: Send + Sync {
    /// What it has.
    fn properties(&self) -> &Properties;

    /// Bytes of memory that are free, and all.
    fn memory(&self) -> Result<(usize, usize), CudaError>;

    /// Memory of this many bytes, more than 0, aligned to 16 bytes at least.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// It is of `allocate` of this device, and nothing uses it afterwards.
    unsafe fn free(&self, address: u64);

    /// Copies to the device.
    ///
    /// # Safety
    /// The place is inside of allocated memory.
    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<(), CudaError>;

    /// Copies from the device, after all that was launched before.
    ///
    /// # Safety
    /// The place is inside of allocated memory.
    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError>;

    /// Fills with zeros.
    ///
    /// # Safety
    /// The place is inside of allocated memory.
    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<(), CudaError>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// With these arguments and sizes, the kernel reads and writes inside of allocated memory only.
    unsafe fn launch(&self, launch: Launch) -> Result<(), CudaError>;
}

/// A device that can be shared; what every kernel is called with.
#[derive(Clone)]
pub struct Cuda {
    pub(super) device: Arc<dyn Device>,
}

impl Cuda {
    /// Of this device.
    pub fn new(device: impl Device + 'static) -> Cuda {
        Cuda { device: Arc::new(device) }
    }

    /// What the device has.
    pub fn properties(&self) -> &Properties {
        self.device.properties()
    }

    /// Bytes of memory that are free, and all.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.device.memory()
    }

    /// Memory of `bytes` bytes; what it holds is not known.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, CudaError> {
        // A device gives no empty memory, and a kernel that reads none still gets an address.
        let address = self.device.allocate(bytes.max(1))?;
        Ok(Memory { device: Arc::clone(&self.device), address, bytes })
    }

    /// Memory with this content.
    pub fn upload(&self, bytes: &[u8]) -> Result<Memory, CudaError> {
        let memory = self.allocate(bytes.len())?;
        memory.write(0, bytes)?;
        Ok(memory)
    }

    /// Launches a kernel whose arguments were checked.
    ///
    /// # Safety
    /// As for [`Device::launch`].
    pub(super) unsafe fn launch(&self, launch: Launch) -> Result<(), CudaError> {
        // SAFETY: passed on.
        unsafe { self.device.launch(launch) }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cuda({})", self.properties().name)
    }
}

/// Memory of a device, given back when it is dropped.
pub struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), CudaError> {
        super::error::check_len("memory", offset.saturating_add(len), self.bytes)
    }

    /// Copies to the device, `offset` bytes from its beginning.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), CudaError> {
        self.check(offset, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: inside of this memory.
        unsafe { self.device.write(self.address + offset as u64, from) }
    }

    /// Copies from the device, `offset` bytes from its beginning.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), CudaError> {
        self.check(offset, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: inside of this memory.
        unsafe { self.device.read(self.address + offset as u64, to) }
    }

    /// Fills all of it with zeros.
    pub fn clear(&self) -> Result<(), CudaError> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: all of this memory.
        unsafe { self.device.clear(self.address, self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is of this device, and this is its owner.
        unsafe { self.device.free(self.address) }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes)
    }
}
