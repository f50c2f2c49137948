//! Compiles files of kernels to CUBINs with NVRTC, which is loaded at run time and needs neither a device nor a toolkit.
//!
//! It is looked for in the folder that `HOST_NVRTC_DIR` names; by the system's loader; in a toolkit (`CUDA_HOME`,
//! `CUDA_PATH`, /usr/local/cuda); and where pip puts the wheel `nvidia-cuda-nvrtc`. What is compiled is cached under the hash
//! of sources, options, architecture and NVRTC's version.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::sys;
use libloading::Library;

use super::source::{DEVICE_HEADERS, Module};
use super::{CudaError, cache};

/// Functions that are called; cudarc panics if one is missing.
const NEEDED: [&str; 10] = [
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
];

/// NVRTC, loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvrtc {
    /// `(13, 0)`, say.
    pub version: (i32, i32),
    /// Where it was found.
    pub place: String,
    /// Compute capabilities that it compiles for: 80, 90, ...
    pub architectures: Vec<i32>,
}

/// What NVRTC made of a file.
#[derive(Debug, Clone)]
pub struct Cubin {
    /// The code.
    pub bytes: Vec<u8>,
    /// Registers, stack and spills of each kernel, as `ptxas -v` prints them; empty if it is from the cache.
    pub log: String,
}

/// Finds and loads NVRTC, once in a process.
pub fn nvrtc() -> Result<Nvrtc, CudaError> {
    static FOUND: OnceLock<Result<Nvrtc, CudaError>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn missing(message: String) -> CudaError {
    CudaError::NoNvrtc(message)
}

fn find() -> Result<Nvrtc, CudaError> {
    let named = std::env::var_os("HOST_NVRTC_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let place = match named {
        Some(dir) => {
            if !preload(&dir).map_err(|e| missing(format!("HOST_NVRTC_DIR is {}: {e}", dir.display())))? {
                return Err(missing(format!("HOST_NVRTC_DIR is {}: there is no libnvrtc.so in it", dir.display())));
            }
            dir.display().to_string()
        }
        // SAFETY: it opens and closes a library of the system.
        None if unsafe { sys::is_culib_present() } => "the system's libraries".to_owned(),
        None => {
            let dirs = usual_folders();
            let found = dirs.iter().find(|dir| preload(dir).unwrap_or(false));
            let found = found.ok_or_else(|| {
                missing(
                    "there is no NVRTC (libnvrtc.so), with which kernels are compiled: install a CUDA toolkit, or `pip \
                     install nvidia-cuda-nvrtc` and name its folder with HOST_NVRTC_DIR"
                        .to_owned(),
                )
            })?;
            found.display().to_string()
        }
    };
    // SAFETY: as above.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing(format!(
            "the libnvrtc.so of {place} is of a version that this program does not know; use 12 or 13"
        )));
    }
    // SAFETY: it is present, so this does not panic.
    let library = unsafe { sys::culib() };
    for symbol in NEEDED {
        // SAFETY: only whether it is there is looked at.
        if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
            return Err(missing(format!("the libnvrtc.so of {place} is too old: it has no {symbol}; use 12 or newer")));
        }
    }
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: the symbols are there; the places are valid.
    let architectures = unsafe {
        check("nvrtcVersion", sys::nvrtcVersion(&mut major, &mut minor))?;
        check("nvrtcGetNumSupportedArchs", sys::nvrtcGetNumSupportedArchs(&mut count))?;
        let mut all = vec![0; usize::try_from(count).unwrap_or(0)];
        check("nvrtcGetSupportedArchs", sys::nvrtcGetSupportedArchs(all.as_mut_ptr()))?;
        all
    };
    Ok(Nvrtc { version: (major, minor), place, architectures })
}

fn check(call: &'static str, result: sys::nvrtcResult) -> Result<(), CudaError> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(CudaError::Driver { call, code: format!("{other:?}"), hint: "" }),
    }
}

/// Loads NVRTC from this folder, so that it is found by its name from now on. Whether there was one.
fn preload(dir: &Path) -> Result<bool, String> {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|p| name(p).starts_with("libnvrtc") && name(p).contains(".so") && !name(p).contains(".alt."))
        .collect();
    // The builtins first: NVRTC 13.0 does not find them beside itself.
    files.sort_by_key(|p| (!name(p).contains("builtins"), name(p)));
    let mut found = false;
    for file in files {
        // SAFETY: its initialisers are NVIDIA's; it stays loaded.
        let library = unsafe { Library::new(&file) }.map_err(|e| format!("{}: {e}", file.display()))?;
        found |= !name(&file).contains("builtins");
        std::mem::forget(library);
    }
    Ok(found)
}

/// Where toolkits and wheels put it.
fn usual_folders() -> Vec<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut dirs: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(var).collect();
    dirs.push("/usr/local/cuda".into());
    let mut dirs: Vec<PathBuf> = dirs.into_iter().flat_map(|dir| ["lib64", "lib"].map(|lib| dir.join(lib))).collect();
    // lib/pythonX.Y/site-packages/nvidia/{cu13,cuda_nvrtc}/lib
    let homes =
        [var("VIRTUAL_ENV"), var("CONDA_PREFIX"), var("HOME").map(|h| h.join(".local")), Some("/usr/local".into())];
    for lib in homes.into_iter().flatten().map(|home| home.join("lib")) {
        let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten().map(|entry| entry.path());
        for packages in pythons.flat_map(|p| ["site-packages", "dist-packages"].map(|name| p.join(name).join("nvidia")))
        {
            dirs.extend(["cu13", "cuda_nvrtc"].map(|name| packages.join(name).join("lib")));
        }
    }
    dirs.retain(|dir| dir.is_dir());
    dirs
}

/// Options that are the same for every architecture. Sums are as they are written: see `device.cuh`.
const OPTIONS: [&str; 4] = ["--std=c++17", "--fmad=false", "--ptxas-options=-v", "-default-device"];

/// Compiles a file for an architecture such as `sm_90a`, or takes it from the cache.
pub fn cubin(module: Module, architecture: &str, dir: Option<&Path>) -> Result<Cubin, CudaError> {
    let nvrtc = nvrtc()?;
    let version = format!("{}.{}", nvrtc.version.0, nvrtc.version.1);
    let headers = DEVICE_HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let parts = headers.chain([module.file(), module.text()]).chain(OPTIONS).chain([architecture, &version]);
    let name = format!("{}-{architecture}-{}.cubin", module.file(), cache::key(parts));
    if let Some(bytes) = cache::get(dir, &name) {
        return Ok(Cubin { bytes, log: String::new() });
    }
    let made = compile(module.file(), module.text(), architecture)?;
    cache::put(dir, &name, &made.bytes);
    Ok(made)
}

/// A program of NVRTC's, destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created and is not used afterwards.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Compiles this text.
fn compile(file: &'static str, text: &str, architecture: &str) -> Result<Cubin, CudaError> {
    let failed = |message: String| CudaError::Compile { file, architecture: architecture.to_owned(), message };
    let c = |text: &str| CString::new(text).map_err(|_| failed("a source has a zero byte".into()));
    let (name, text) = (c(file)?, c(text)?);
    let headers = DEVICE_HEADERS.iter().map(|(n, t)| Ok((c(n)?, c(t)?))).collect::<Result<Vec<_>, CudaError>>()?;
    let names: Vec<*const c_char> = headers.iter().map(|h| h.0.as_ptr()).collect();
    let texts: Vec<*const c_char> = headers.iter().map(|h| h.1.as_ptr()).collect();
    let target = format!("--gpu-architecture={architecture}");
    let options = OPTIONS.into_iter().chain([target.as_str()]).map(c).collect::<Result<Vec<_>, _>>()?;
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all strings live until the end of this function, and sizes are those of what is written to.
    unsafe {
        let created = sys::nvrtcCreateProgram(
            &mut program.0,
            text.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            texts.as_ptr(),
            names.as_ptr(),
        );
        check("nvrtcCreateProgram", created)?;
        let result = sys::nvrtcCompileProgram(program.0, options.len() as c_int, options.as_ptr());
        let mut size = 0;
        check("nvrtcGetProgramLogSize", sys::nvrtcGetProgramLogSize(program.0, &mut size))?;
        let mut log = vec![0u8; size + 1];
        check("nvrtcGetProgramLog", sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()))?;
        let log = CStr::from_bytes_until_nul(&log).map(|l| l.to_string_lossy().into_owned()).unwrap_or_default();
        if result != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed(format!("{result:?} {}", log.trim())));
        }
        check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(program.0, &mut size))?;
        let mut bytes = vec![0u8; size];
        check("nvrtcGetCUBIN", sys::nvrtcGetCUBIN(program.0, bytes.as_mut_ptr().cast()))?;
        Ok(Cubin { bytes, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_nvrtc_holds_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(preload(dir.path()), Ok(false));
        assert!(preload(&dir.path().join("gone")).unwrap_err().contains("No such file"));
        std::fs::write(dir.path().join("libnvrtc.so.13"), "no library").unwrap();
        assert!(preload(dir.path()).unwrap_err().contains("libnvrtc.so.13"));
    }
}
