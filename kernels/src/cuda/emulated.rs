//! The emulated device: the same files of kernels, compiled by the machine's C++ compiler and run on one thread of the CPU.
//!
//! It is there for tests, and slow. `emulator.hpp` says what it notices. Compiled libraries are cached like CUBINs.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use libloading::Library;

use super::device::{Cuda, Device, Launch, Properties};
use super::source::{EMULATOR_HEADERS, Module};
use super::{CudaError, cache};

/// How kernels are emulated.
#[derive(Debug, Clone, Default)]
pub struct EmulatedOptions {
    /// The schedule: 0 is the plain one and the fastest, every other is one of its own.
    pub seed: u64,
    /// Build with a sanitizer. The process must have loaded its library before all else.
    pub sanitizer: Option<Sanitizer>,
    /// Where compiled libraries are kept; `None`: in a folder that is removed at the end.
    pub cache: Option<PathBuf>,
    /// Changes of the sources: what is replaced in a file, which must be there, and by what. For tests of the emulator.
    pub edits: Vec<(Module, String, String)>,
}

/// What emulated kernels are watched by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitizer {
    /// Accesses outside of buffers, and undefined behaviour; of libasan.
    Address,
    /// Accesses of threads of a grid that nothing orders; of libtsan. Slow.
    Thread,
}

/// `emulator_launch` of `emulator.hpp`.
type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    usize,
    u64,
    *const c_char,
    *mut *mut c_void,
    *mut c_char,
    usize,
) -> c_int;
type AllocateFn = unsafe extern "C" fn(usize) -> *mut c_void;
type FreeFn = unsafe extern "C" fn(*mut c_void);

/// A loaded library.
struct Compiled {
    launch: LaunchFn,
    allocate: AllocateFn,
    free: FreeFn,
    /// It keeps its state in globals: one launch runs at a time.
    running: Mutex<()>,
    _library: Library,
    /// Removed when the library is closed, if it is not cached.
    _folder: Option<tempfile::TempDir>,
}

struct Emulated {
    options: EmulatedOptions,
    compiler: Compiler,
    /// Compiled when they are first needed.
    modules: Mutex<HashMap<Module, Arc<Compiled>>>,
    properties: Properties,
    launches: AtomicU64,
    /// What was allocated, and by whose library.
    allocated: Mutex<HashMap<u64, Arc<Compiled>>>,
}

/// The emulated device. Files of kernels are compiled when they are first needed, if they are not cached.
pub fn emulated(options: &EmulatedOptions) -> Result<Cuda, CudaError> {
    let properties = Properties {
        name: "emulated device (for tests)".into(),
        architecture: "emulated".into(),
        multiprocessors: 2,
        shared_memory: 99 << 10,
    };
    Ok(Cuda::new(Emulated {
        options: options.clone(),
        compiler: Compiler::find()?,
        modules: Mutex::default(),
        properties,
        launches: AtomicU64::new(0),
        allocated: Mutex::default(),
    }))
}

/// The lock, also after another thread has panicked with it: what it guards is whole between calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Emulated {
    fn module(&self, module: Module) -> Result<Arc<Compiled>, CudaError> {
        let mut modules = lock(&self.modules);
        if let Some(compiled) = modules.get(&module) {
            return Ok(Arc::clone(compiled));
        }
        let compiled = self.compiler.load(module, &self.options)?;
        modules.insert(module, Arc::clone(&compiled));
        Ok(compiled)
    }
}

// SAFETY: memory is of the C library's allocator and stays where it is; launches and copies are done when they return.
unsafe impl Device for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(usize, usize), CudaError> {
        // SAFETY: sysconf only reads.
        let [pages, free, size] = [libc::_SC_PHYS_PAGES, libc::_SC_AVPHYS_PAGES, libc::_SC_PAGESIZE]
            .map(|name| unsafe { libc::sysconf(name) });
        let bytes =
            |n: libc::c_long| usize::try_from(n).unwrap_or(0).saturating_mul(usize::try_from(size).unwrap_or(0));
        Ok((bytes(free), bytes(pages)))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let library = self.module(Module::Rows)?;
        // SAFETY: it only allocates.
        let address = unsafe { (library.allocate)(bytes) } as u64;
        if address == 0 {
            let (free, total) = self.memory()?;
            return Err(CudaError::Memory { bytes, free, total });
        }
        lock(&self.allocated).insert(address, library);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        if let Some(library) = lock(&self.allocated).remove(&address) {
            // SAFETY: it was allocated by this library, and the caller is done with it.
            unsafe { (library.free)(address as *mut c_void) }
        }
    }

    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: addresses of this device are the process's own, and the place is allocated.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, mut launch: Launch) -> Result<(), CudaError> {
        let Some(grid) = launch.grid()? else { return Ok(()) };
        let compiled = self.module(launch.module)?;
        let failed = |message: String| CudaError::Kernel { kernel: launch.kernel, message };
        let (name, letters) = (c_string(launch.kernel), c_string(launch.args.letters()));
        let block = [launch.threads as u32, 1, 1];
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        // Every launch has a schedule of its own.
        let seed = if self.options.seed == 0 {
            0
        } else {
            self.options.seed.wrapping_mul(1_000_003).wrapping_add(number).max(1)
        };
        let mut message = [0u8; 512];
        let mut pointers = launch.args.pointers();
        let code = {
            let _running = lock(&compiled.running);
            // SAFETY: the library checks the kinds of the arguments; the caller answers for what the kernel does with them.
            unsafe {
                (compiled.launch)(
                    name.as_ptr(),
                    grid.as_ptr(),
                    block.as_ptr(),
                    launch.shared,
                    seed,
                    letters.as_ptr(),
                    pointers.as_mut_ptr(),
                    message.as_mut_ptr().cast(),
                    message.len(),
                )
            }
        };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&message).map_or(String::new(), |m| m.to_string_lossy().into_owned());
        Err(failed(text))
    }
}

fn c_string(text: &str) -> CString {
    // Names of kernels and letters have no zeros; should one come in, what is before it is not the name of a kernel.
    CString::new(text).unwrap_or_default()
}

/// A C++ compiler of this machine.
struct Compiler {
    command: String,
    /// What it says of itself: part of the key of what it makes.
    version: String,
}

/// A compiler's process: a sanitizer that this one was started with is not for it.
fn run(command: &str) -> Command {
    let mut command = Command::new(command);
    command.env_remove("LD_PRELOAD");
    command
}

impl Compiler {
    /// `CXX`, or the usual names.
    fn find() -> Result<Compiler, CudaError> {
        let named = std::env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let candidates = named.map_or_else(|| ["c++", "g++", "clang++"].map(str::to_owned).to_vec(), |name| vec![name]);
        for command in &candidates {
            if let Ok(output) = run(command).arg("--version").output()
                && output.status.success()
            {
                let version = String::from_utf8_lossy(&output.stdout).into_owned();
                return Ok(Compiler { command: command.clone(), version });
            }
        }
        Err(CudaError::Unavailable(format!(
            "the emulated device needs a C++ compiler, and none of {} runs: install g++ (or name a compiler with CXX)",
            candidates.join(", ")
        )))
    }

    fn flags(options: &EmulatedOptions) -> Vec<&'static str> {
        let mut flags = vec!["-x", "c++", "-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-DHOST_EMULATOR"];
        // Kernels read bytes as other types, as the device lets them; contraction is written out where it is meant.
        flags.extend(["-fno-strict-aliasing", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas"]);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") {
            flags.push("-mfma"); // an instruction instead of a call
        }
        match options.sanitizer {
            Some(Sanitizer::Address) => {
                flags.extend(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]);
            }
            Some(Sanitizer::Thread) => flags.push("-fsanitize=thread"),
            None => {}
        }
        flags
    }

    /// The compiled module: each once in a process, or else its globals would be there twice.
    fn load(&self, module: Module, options: &EmulatedOptions) -> Result<Arc<Compiled>, CudaError> {
        static LOADED: OnceLock<Mutex<HashMap<String, Arc<Compiled>>>> = OnceLock::new();
        let failed =
            |message: String| CudaError::Compile { file: module.file(), architecture: "the emulator".into(), message };
        let mut text = module.text().to_owned();
        let mut headers: Vec<(&str, String)> = EMULATOR_HEADERS.iter().map(|(n, t)| (*n, (*t).to_owned())).collect();
        for (_, from, to) in options.edits.iter().filter(|(m, ..)| *m == module) {
            let place = std::iter::once(&mut text).chain(headers.iter_mut().map(|(_, t)| t)).find(|t| t.contains(from));
            let place = place.ok_or_else(|| failed(format!("there is no `{from}` to be edited")))?;
            *place = place.replace(from, to);
        }
        let flags = Self::flags(options);
        let sources = headers.iter().map(|(_, t)| t.as_str()).chain([text.as_str()]);
        let key =
            cache::key(sources.chain(flags.iter().copied()).chain([self.command.as_str(), self.version.as_str()]));
        let mut loaded = lock(LOADED.get_or_init(Mutex::default));
        if let Some(compiled) = loaded.get(&key) {
            return Ok(Arc::clone(compiled));
        }
        let name = format!("{}-{key}.so", module.file());
        let cached = options.cache.as_ref().map(|dir| dir.join(&name)).filter(|place| place.is_file());
        let (place, folder) = match cached {
            Some(place) => (place, None),
            None => {
                let folder = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
                let made = self.compile(module, folder.path(), &headers, &text, &flags).map_err(failed)?;
                let kept =
                    std::fs::read(&made).ok().and_then(|bytes| cache::put(options.cache.as_deref(), &name, &bytes));
                match kept {
                    Some(place) => (place, None),
                    None => (made, Some(folder)),
                }
            }
        };
        let compiled = Arc::new(Compiled::open(&place, folder).map_err(|e| failed(e.to_string()))?);
        loaded.insert(key, Arc::clone(&compiled));
        Ok(compiled)
    }

    fn compile(
        &self,
        module: Module,
        dir: &Path,
        headers: &[(&str, String)],
        text: &str,
        flags: &[&str],
    ) -> Result<PathBuf, String> {
        for (name, text) in headers.iter().map(|(n, t)| (*n, t.as_str())).chain([(module.file(), text)]) {
            std::fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"))?;
        }
        let out = dir.join("kernels.so");
        let output = run(&self.command)
            .args(flags)
            .arg("-o")
            .args([&out, &dir.join(module.file())])
            .output()
            .map_err(|e| format!("{}: {e}", self.command))?;
        if output.status.success() {
            return Ok(out);
        }
        Err(format!("{} says: {}", self.command, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Compiled {
    fn open(place: &Path, folder: Option<tempfile::TempDir>) -> Result<Compiled, libloading::Error> {
        // SAFETY: it was made above of this program's own sources; its initialisers fill a table.
        let library = unsafe { Library::new(place)? };
        // SAFETY: functions of `emulator.hpp`, of these types.
        unsafe {
            Ok(Compiled {
                launch: *library.get::<LaunchFn>(b"emulator_launch")?,
                allocate: *library.get::<AllocateFn>(b"emulator_allocate")?,
                free: *library.get::<FreeFn>(b"emulator_free")?,
                running: Mutex::default(),
                _library: library,
                _folder: folder,
            })
        }
    }
}
