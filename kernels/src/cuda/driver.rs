//! A real device, through the driver library, which is loaded at run time: the program links no library of CUDA. Every symbol
//! that is called is looked for first, since cudarc panics where one is missing.
//!
//! One stream: launches, copies and frees run in the order of the calls.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use cudarc::driver::sys;

use super::CudaError;
use super::device::{Cuda, Device, Launch, Properties};
use super::nvrtc::{Cubin, cubin, nvrtc};
use super::source::Module;

/// Functions that are called.
const NEEDED: [&str; 21] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// The same as `NEEDED`, for functions that are needed by some launches only.
const ATTRIBUTE: &str = "cuFuncSetAttribute";

/// Shared memory that a kernel may have without asking for more.
const PLAIN_SHARED: usize = 48 << 10;

/// The lowest compute capability that kernels are compiled for: bf16 and asynchronous copies came with it.
const LOWEST: (i32, i32) = (8, 0);

/// The CUDA version that a driver must be for at least: the first that knows all architectures kernels are compiled for.
pub const LOWEST_DRIVER: (i32, i32) = (12, 8);

/// A driver that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The CUDA version that it is for: `(13, 0)`, say.
    pub version: (i32, i32),
    /// Its devices.
    pub devices: Vec<DeviceInfo>,
}

/// What a driver says about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
}

impl DeviceInfo {
    /// Why kernels cannot run on it.
    pub fn refused(&self) -> Option<String> {
        (self.capability < LOWEST).then(|| {
            format!(
                "{} has compute capability {}.{}; kernels need {}.{} or higher (Ampere)",
                self.name, self.capability.0, self.capability.1, LOWEST.0, LOWEST.1
            )
        })
    }

    /// What kernels are compiled for. Instructions of one generation only are in the architectures with an `a`.
    fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    use sys::CUresult as R;
    let hint = match result {
        R::CUDA_SUCCESS => return Ok(()),
        R::CUDA_ERROR_NO_DEVICE => {
            " (the driver sees no device: see nvidia-smi, CUDA_VISIBLE_DEVICES, and in a container --gpus)"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            " (the driver's library and its kernel module differ: reboot, or reinstall the driver)"
        }
        R::CUDA_ERROR_INVALID_IMAGE | R::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            " (kernels were compiled by an NVRTC newer than the driver: install a newer driver, or name an older NVRTC with \
             HOST_NVRTC_DIR)"
        }
        _ => "",
    };
    // By its number's name: `cuGetErrorName` may be missing.
    Err(CudaError::Driver { call, code: format!("{result:?}"), hint })
}

/// Looks for the driver and its devices.
pub fn driver() -> Result<Driver, CudaError> {
    // SAFETY: it opens and closes a library of the system.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Unavailable("there is no CUDA driver (libcuda.so.1 is not found)".into()));
    }
    // SAFETY: it is present, so this does not panic.
    let library = unsafe { sys::culib() };
    for symbol in NEEDED.into_iter().chain([ATTRIBUTE]) {
        // SAFETY: only whether it is there is looked at.
        if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
            return Err(CudaError::OldDriver { what: format!("it has no {symbol}") });
        }
    }
    let (mut version, mut count): (c_int, c_int) = (0, 0);
    // SAFETY: the symbols are there; the places are valid.
    unsafe {
        check("cuInit", sys::cuInit(0))?;
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
        check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
    }
    if count <= 0 {
        return Err(CudaError::Unavailable("the CUDA driver sees no device".into()));
    }
    let version = (version / 1000, version % 1000 / 10);
    if version < LOWEST_DRIVER {
        return Err(CudaError::OldDriver { what: format!("it is for CUDA {}.{}", version.0, version.1) });
    }
    let devices = (0..count).map(info).collect::<Result<_, _>>()?;
    Ok(Driver { version, devices })
}

fn handle(ordinal: c_int) -> Result<sys::CUdevice, CudaError> {
    let mut device = 0;
    // SAFETY: `driver` has seen the symbol; the place is valid.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<c_int, CudaError> {
    let mut value = 0;
    // SAFETY: as in `handle`.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

fn info(ordinal: c_int) -> Result<DeviceInfo, CudaError> {
    use sys::CUdevice_attribute as A;
    let device = handle(ordinal)?;
    let (mut name, mut memory) = ([0u8; 256], 0);
    // SAFETY: as in `handle`; the name has 255 bytes and a zero.
    unsafe {
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device))?;
        check("cuDeviceTotalMem_v2", sys::cuDeviceTotalMem_v2(&mut memory, device))?;
    }
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(name).into_owned(),
        capability: (
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory,
    })
}

struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<Module, sys::CUmodule>,
    /// By name; and whether they may have more shared memory than the usual.
    functions: Mutex<HashMap<&'static str, (sys::CUfunction, bool)>>,
    properties: Properties,
}

// SAFETY: handles of the driver may be used from any thread; every call makes the context current first.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver's calls are thread-safe.
unsafe impl Sync for Gpu {}

/// Device `ordinal`, with all kernels loaded; `cache` is where CUBINs are kept.
pub fn device(ordinal: usize, cache: Option<PathBuf>) -> Result<Cuda, CudaError> {
    let driver = driver()?;
    let Some(found) = driver.devices.get(ordinal) else {
        let count = driver.devices.len();
        return Err(CudaError::Unavailable(format!(
            "there is no CUDA device {ordinal}: the driver has {count}, counted from 0"
        )));
    };
    if let Some(why) = found.refused() {
        return Err(CudaError::Unavailable(why));
    }
    let architecture = found.architecture();
    let cubins = compile(&architecture, cache.as_deref())?;
    let handle = handle(ordinal as c_int)?;
    let number = |which| attribute(handle, which).map(|n| usize::try_from(n).unwrap_or(0));
    use sys::CUdevice_attribute as A;
    let properties = Properties {
        name: found.name.clone(),
        architecture,
        multiprocessors: number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory: number(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    };
    let mut context = std::ptr::null_mut();
    // SAFETY: `driver` has seen all symbols; the places are valid.
    check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) })?;
    // From here on it is released when it is dropped.
    let mut gpu = Gpu {
        device: handle,
        context,
        stream: std::ptr::null_mut(),
        modules: HashMap::new(),
        functions: Mutex::default(),
        properties,
    };
    gpu.enter()?;
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: as above.
    check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut gpu.stream, flags) })?;
    for (module, cubin) in Module::ALL.into_iter().zip(cubins) {
        let mut loaded = std::ptr::null_mut();
        // SAFETY: the CUBIN is a whole ELF file of NVRTC's or the cache's, and lives until the call is done.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut loaded, cubin.bytes.as_ptr().cast()) })?;
        gpu.modules.insert(module, loaded);
    }
    Ok(Cuda::new(gpu))
}

/// All files of kernels, on as many threads.
fn compile(architecture: &str, cache: Option<&std::path::Path>) -> Result<Vec<Cubin>, CudaError> {
    // Loaded before the threads begin. With everything in the cache it is still asked for its version.
    nvrtc()?;
    std::thread::scope(|scope| {
        let all = Module::ALL.map(|module| scope.spawn(move || cubin(module, architecture, cache)));
        all.into_iter()
            .map(|t| t.join().map_err(|_| CudaError::Unavailable("a thread that compiles kernels panicked".into()))?)
            .collect()
    })
}

impl Gpu {
    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until this is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is this device's.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// The function of a launch, allowed as much shared memory as that asks for.
    fn function(&self, launch: &Launch) -> Result<sys::CUfunction, CudaError> {
        let mut functions: MutexGuard<'_, _> = self.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let more = launch.shared > PLAIN_SHARED;
        let known = functions.get(launch.kernel).copied();
        let (function, allowed) = match known {
            Some(known) => known,
            None => {
                let name = CString::new(launch.kernel).unwrap_or_default();
                let mut function = std::ptr::null_mut();
                let module = self.modules.get(&launch.module).copied().unwrap_or(std::ptr::null_mut());
                // SAFETY: the module is loaded; the name is a C string.
                check("cuModuleGetFunction", unsafe {
                    sys::cuModuleGetFunction(&mut function, module, name.as_ptr())
                })?;
                (function, false)
            }
        };
        if more && !allowed {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = self.properties.shared_memory as c_int;
            // SAFETY: the function is of a loaded module.
            check(ATTRIBUTE, unsafe { sys::cuFuncSetAttribute(function, which, bytes) })?;
        }
        functions.insert(launch.kernel, (function, allowed || more));
        Ok(function)
    }
}

// SAFETY: memory is the driver's; the stream keeps the order of calls.
unsafe impl Device for Gpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places are valid.
        check("cuMemGetInfo_v2", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: the place is valid.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory()?;
                Err(CudaError::Memory { bytes, free, total })
            }
            result => check("cuMemAlloc_v2", result).map(|()| address),
        }
    }

    unsafe fn free(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: the caller's promise. It waits for what uses the memory. Nobody could do anything about an error.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's promise. Memory that is not pinned is copied before the call returns.
        check("cuMemcpyHtoDAsync_v2", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream)
        })
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's promise; it is waited for before `to` is given back.
        check("cuMemcpyDtoHAsync_v2", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream)
        })?;
        self.synchronize()
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.stream) })
    }

    unsafe fn launch(&self, mut launch: Launch) -> Result<(), CudaError> {
        let Some([x, y, z]) = launch.grid()? else { return Ok(()) };
        self.enter()?;
        let function = self.function(&launch)?;
        let mut arguments = launch.args.pointers();
        // SAFETY: the function is loaded; the driver copies the arguments; the caller answers for what it does with them.
        let result = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads as u32,
                1,
                1,
                launch.shared as u32,
                self.stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", result).map_err(|e| CudaError::Kernel { kernel: launch.kernel, message: e.to_string() })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Modules, the stream and what is left of the memory go with the context.
        // SAFETY: it was retained once, and is not used afterwards.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
