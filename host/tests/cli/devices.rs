//! Machines without a CUDA driver, and with one that does not work: small libraries that take the driver's place, made here
//! with the C compiler. The program starts on the CPU and says why, or, where a device was asked for, does not start.

use std::process::Command;

use crate::program::{Output, Place, finish, says};

/// A `libcuda.so.1` made of this C code, in a folder of its own; the folder.
fn fake_driver(place: &Place, name: &str, code: &str) -> String {
    let source = place.put(&format!("{name}/cuda.c"), code);
    let folder = source.parent().unwrap().to_owned();
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so.1")).arg(&source).output();
    let made = made.expect("runs the C compiler");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder.to_str().unwrap().to_owned()
}

/// Every function that is called, each giving `result`.
fn all_functions(result: u32) -> String {
    let names = [
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
        "cuFuncSetAttribute",
    ];
    names.map(|name| format!("int {name}() {{ return {result}; }}\n")).concat()
}

/// A driver with one device of this compute capability, on which nothing can be allocated.
fn one_device(major: u32, minor: u32) -> String {
    let rest = all_functions(2);
    let own = ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetAttribute"];
    let kept: String =
        rest.lines().filter(|l| !own.iter().any(|f| l.contains(&format!("{f}(")))).collect::<Vec<_>>().join("\n");
    let kept = kept.replace("int cuDeviceGet() { return 2; }", "int cuDeviceGet(int *d) { *d = 0; return 0; }");
    let kept = kept.replace(
        "int cuDeviceTotalMem_v2() { return 2; }",
        "int cuDeviceTotalMem_v2(unsigned long *n) { *n = 1ul << 30; return 0; }",
    );
    format!(
        "int cuInit(unsigned f) {{ return 0; }}\n\
         int cuDriverGetVersion(int *v) {{ *v = 13000; return 0; }}\n\
         int cuDeviceGetCount(int *n) {{ *n = 1; return 0; }}\n\
         int cuDeviceGetName(char *s, int n, int d) {{ const char *t = \"Fake 9000\"; while ((*s++ = *t++)); return 0; }}\n\
         int cuDeviceGetAttribute(int *v, int which, int d) {{ *v = which == 75 ? {major} : which == 76 ? {minor} : 1; return 0; }}\n\
         {kept}\n"
    )
}

fn with_driver(place: &Place, folder: &str, args: &[&str]) -> Output {
    finish(place.host(args).env("LD_LIBRARY_PATH", folder).env("HOST_NVRTC_DIR", "/nowhere"), b"")
}

const GENERATE: [&str; 5] = ["generate", "--prompt-token-ids", "1,2,3", "--max-tokens", "2"];

/// Whether this machine has a driver of its own: then there is no telling what it says without one.
fn has_driver() -> bool {
    kernels::cuda::driver().is_ok()
}

#[test]
fn without_a_driver_the_cpu_is_taken_with_a_line_in_the_log_and_a_device_is_refused() {
    if has_driver() {
        return;
    }
    let place = Place::new();
    let output = place.run(&GENERATE);
    output.good();
    let mut told = GENERATE.to_vec();
    told.extend(["--log-level", "info"]);
    let line = "on the CPU: there is no CUDA driver (libcuda.so.1 is not found)";
    let output = place.run(&told);
    assert_eq!(output.stderr.lines().filter(|l| l.contains(line)).count(), 1, "{}", output.stderr);
    let mut asked = GENERATE.to_vec();
    asked.extend(["--device", "cuda"]);
    place.run(&asked).fails(&["--device cuda", "there is no CUDA driver", "libcuda.so.1"]);
    let doctor = place.run(&["doctor"]);
    says(&doctor.stdout, &["cuda", "not used: there is no CUDA driver"]);
}

#[test]
fn a_driver_that_does_not_work_is_named_in_one_line_and_the_cpu_is_taken() {
    let place = Place::new();
    let table = [
        ("no_device", all_functions(100), &["cuInit: CUDA_ERROR_NO_DEVICE", "nvidia-smi"][..]),
        ("mismatch", all_functions(803), &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot"]),
        (
            "old",
            "int cuInit(unsigned f) { return 0; }\n".into(),
            &["the CUDA driver is too old: it has no cuDriverGetVersion"],
        ),
        (
            "version",
            one_device(9, 0).replace("*v = 13000", "*v = 11040"),
            &["the CUDA driver is too old: it is for CUDA 11.4", "12.8"],
        ),
        ("none", all_functions(0), &["the CUDA driver sees no device"]),
        ("turing", one_device(7, 5), &["Fake 9000 has compute capability 7.5", "8.0"]),
        ("no_nvrtc", one_device(9, 0), &["HOST_NVRTC_DIR is /nowhere"]),
    ];
    for (name, code, words) in table {
        let folder = fake_driver(&place, name, &code);
        let output = with_driver(&place, &folder, &GENERATE);
        assert_eq!(output.code, Some(0), "{name}: {output:?}");
        // What is not there at all needs no words.
        if name != "none" {
            says(&output.stderr, &[&["on the CPU, though there is a CUDA driver"], words].concat());
            assert_eq!(output.stderr.lines().count(), 1, "{name}: {}", output.stderr);
        }
        let mut asked = GENERATE.to_vec();
        asked.extend(["--device", "cuda:0"]);
        with_driver(&place, &folder, &asked).fails(&[&["--device cuda"], words].concat());
        let doctor = with_driver(&place, &folder, &["doctor"]);
        says(&doctor.stdout, words);
    }
    let folder = fake_driver(&place, "one", &one_device(9, 0));
    let mut asked = GENERATE.to_vec();
    asked.extend(["--device", "cuda:7"]);
    with_driver(&place, &folder, &asked).fails(&["there is no CUDA device 7", "counted from 0"]);
}

/// What the program needs to be started at all: libraries of the C runtime, and no others.
#[cfg(target_os = "linux")]
#[test]
fn the_program_links_no_library_of_cuda() {
    let output = Command::new("readelf").args(["-d", env!("CARGO_BIN_EXE_host")]).output().expect("runs readelf");
    let text = String::from_utf8_lossy(&output.stdout);
    let needed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']')))
        .collect();
    assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{text}");
    let runtime = ["libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux"];
    for name in needed {
        assert!(runtime.iter().any(|known| name.starts_with(known)), "the program links {name}");
    }
}

#[test]
fn devices_and_executors_that_exclude_each_other_are_refused() {
    let place = Place::new();
    let run = |more: &[&str]| place.run(&[&GENERATE[..], more].concat());
    run(&["--device", "emulated", "--executor", "cpu"]).fails(&["--executor cpu", "--device emulated"]);
    run(&["--device", "cuda:1", "--executor", "cpu"]).fails(&["--executor cpu", "--device cuda:1"]);
    run(&["--device", "emulated", "--executor", "reference"]).fails(&["--executor reference", "--device auto or cpu"]);
    for device in ["emulated", "cuda"] {
        let refused = ["--kv-cache-dtype int8", "no kernels", "--device auto or cpu"];
        run(&["--device", device, "--kv-cache-dtype", "int8"]).fails(&refused);
    }
    let mut command = place.host(&[&GENERATE[..], &["--device", "emulated"]].concat());
    finish(command.env("CXX", "no-such-compiler"), b"").fails(&["--device emulated", "no-such-compiler", "g++"]);
}
