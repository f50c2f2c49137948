//! What this processor can do: instruction sets and usable cores. Read-only; called at start-up and by `host doctor`.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for. Results are reproducible within one, not across them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 with F, BW, VL, DQ, CD and BF16 (Zen 4 and newer, Cooper Lake, Sapphire Rapids and newer).
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Isa {
    /// The best instruction set of this processor. Detected once.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
        })
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        let has = |wanted: &[&str]| {
            let all = cpu_features();
            wanted.iter().all(|name| all.iter().any(|(n, on)| n == name && *on))
        };
        match self {
            Isa::Avx512 => has(&[
                "avx512f",
                "avx512bw",
                "avx512vl",
                "avx512dq",
                "avx512cd",
                "avx512bf16",
                "avx2",
                "fma",
                "f16c",
                "bmi2",
            ]),
            Isa::Avx2 => has(&["avx2", "fma", "f16c"]),
            Isa::Portable => true,
        }
    }

    /// All that this processor has, best first.
    pub fn available() -> Vec<Self> {
        [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The name that [`fmt::Display`] prints and [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = super::KernelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().find(|isa| isa.name() == text).ok_or_else(|| {
            super::KernelError::Option { argument: "isa", got: text.into(), why: "must be avx512, avx2 or portable" }
        })
    }
}

/// The processor features that matter here, and whether this processor (and its operating system) has each.
#[cfg(target_arch = "x86_64")]
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    macro_rules! list {
        ($($name:tt),*) => { vec![$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    list![
        "avx2",
        "fma",
        "f16c",
        "bmi2",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512cd",
        "avx512bf16",
        "avx512vnni",
        "avxvnni"
    ]
}

/// The processor features that matter here: none is used on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Whether `vdpbf16ps` does more arithmetic a cycle than f32 FMAs: on AMD's cores it does (measured on Zen 5, 2:1), on
/// Intel's not (measured on Sapphire Rapids, 1:2).
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_fast_bf16_dot() -> bool {
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
        amd && Isa::Avx512.is_available()
    })
}

/// No other architecture has a kernel that uses one.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_fast_bf16_dot() -> bool {
    false
}

/// Threads that are worth starting: physical cores that this process may use (affinity and cgroup quota respected).
/// A second thread on one core shares its vector units and gains nothing here.
pub fn default_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(logical, |cores| cores.clamp(1, logical))
}

/// Processors that this process may run on, in ascending order. Empty where that cannot be asked.
#[cfg(target_os = "linux")]
pub(crate) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set; the call writes at most its size.
    let (rc, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set), set)
    };
    if rc != 0 {
        return Vec::new();
    }
    // SAFETY: every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Processors that this process may run on: cannot be asked on this system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// Distinct physical cores among the allowed processors, if the system tells.
fn physical_cores() -> Option<usize> {
    let mut siblings = Vec::new();
    for cpu in allowed_cpus() {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let list = std::fs::read_to_string(path).ok()?;
        if !siblings.contains(&list) {
            siblings.push(list);
        }
    }
    (!siblings.is_empty()).then_some(siblings.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_always_there_and_last() {
        assert_eq!(Isa::available().last(), Some(&Isa::Portable));
        assert_eq!(Isa::available().first(), Some(&Isa::detect()));
    }

    #[test]
    fn names_round_trip() {
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
            assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        }
        assert!("sse9".parse::<Isa>().unwrap_err().to_string().contains("avx512, avx2 or portable"));
    }

    #[test]
    fn default_threads_fit_the_machine() {
        let logical = std::thread::available_parallelism().unwrap().get();
        assert!((1..=logical).contains(&default_threads()));
    }
}
