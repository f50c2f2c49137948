//! NVRTC compiles every kernel for every generation that is supported, and nothing spills. Needs no device and no toolkit:
//! `HOST_NVRTC_DIR` names a folder with libnvrtc, such as that of the wheel `nvidia-cuda-nvrtc`. Without NVRTC the test is
//! left out on a developer's machine, and fails where `HOST_TEST_NVRTC` is set, as it is in CI.

use kernels::cuda::{CudaError, Module, cubin, nvrtc};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

/// The most registers with which a block of 256 threads fits on a multiprocessor.
const MOST_REGISTERS: usize = 192;

/// Kernels that may have a stack: sine and cosine of large arguments keep a table there.
const WITH_STACK: [&str; 1] = ["map_f32"];

/// The number before this word.
fn number(line: &str, word: &str) -> usize {
    let before = line.split(word).next().unwrap_or_default();
    before.trim().rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word} in {line}"))
}

#[test]
fn every_kernel_compiles_for_every_generation_without_spills() {
    match nvrtc() {
        Ok(found) => assert!(found.architectures.contains(&90), "{found:?}"),
        Err(e @ CudaError::NoNvrtc(_)) if std::env::var_os("HOST_TEST_NVRTC").is_none() => {
            eprintln!("left out: {e}");
            return;
        }
        Err(e) => panic!("{e}"),
    }
    let compile = |architecture: &'static str| {
        for module in Module::ALL {
            let made = cubin(module, architecture, None).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(&made.bytes[..4], b"\x7fELF", "{module:?}");
            let (mut kernel, mut seen) = ("", 0);
            for line in made.log.lines() {
                if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                    kernel = rest.split('\'').next().unwrap_or_default();
                }
                let of = || format!("{kernel} of {} for {architecture}: {line}", module.file());
                if line.contains("bytes spill stores") {
                    assert_eq!(number(line, "bytes spill stores"), 0, "{}", of());
                    let stack = number(line, "bytes stack frame");
                    assert!(stack == 0 || WITH_STACK.contains(&kernel), "{}", of());
                }
                if line.contains("registers") {
                    assert!(number(line, "registers") <= MOST_REGISTERS, "{}", of());
                    seen += 1;
                }
            }
            let kernels = module.text().matches("EXPORT(").count();
            assert!(seen >= kernels / 2, "{module:?}: ptxas names {seen} kernels");
        }
    };
    // One thread for each generation: compiling is most of the time.
    std::thread::scope(|scope| ARCHITECTURES.map(|a| scope.spawn(move || compile(a))).map(|t| t.join().unwrap()));
}

#[test]
fn cubins_come_from_the_cache() {
    if nvrtc().is_err() {
        return; // the other test says so
    }
    let dir = tempfile::tempdir().unwrap();
    let first = cubin(Module::Recurrent, "sm_90a", Some(dir.path())).unwrap();
    assert!(!first.log.is_empty());
    let again = cubin(Module::Recurrent, "sm_90a", Some(dir.path())).unwrap();
    assert!(again.bytes == first.bytes && again.log.is_empty());
    cubin(Module::Recurrent, "sm_80", Some(dir.path())).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let error = cubin(Module::Recurrent, "sm_7", Some(dir.path())).unwrap_err().to_string();
    assert!(error.contains("recurrent.cu for sm_7") && error.contains("gpu-architecture"), "{error}");
}
