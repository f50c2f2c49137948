//! What a worker process gives up before it loads a plugin. Runs in the worker only.
//!
//! Every step is one that needs no privileges. System call filtering and file system rules belong here too, after the
//! limits: this is the last code that runs before the plugin's.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// What a plugin may use.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Address space, in bytes, beyond what the worker has before it loads the plugin.
    pub memory: u64,
    /// Processor time in seconds; a backstop should the host die without stopping the worker.
    pub cpu_seconds: u64,
}

/// Open files: the pipe, the plugin and its libraries.
const FILES: u64 = 64;

/// Dies with the host. `parent` is the host's process id: if it has died already, the worker is somebody else's child.
pub(super) fn die_with_parent(parent: u32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get());
    if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(io::Error::other("the host has gone")) }
}

/// Gives up rights and sets limits, for good.
pub(super) fn enter(limits: Limits) -> io::Result<()> {
    let fixed = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    setrlimit(Resource::Core, fixed(0))?; // a crash leaves no file
    setrlimit(Resource::Fsize, fixed(0))?; // nor does anything else
    setrlimit(Resource::Nofile, fixed(FILES))?;
    // The hard limit kills, one second after the soft one's signal, which a plugin could ignore.
    let cpu = Rlimit { current: Some(limits.cpu_seconds), maximum: Some(limits.cpu_seconds + 1) };
    setrlimit(Resource::Cpu, cpu)?;
    setrlimit(Resource::As, fixed(limits.memory.saturating_add(address_space()?)))?;
    #[cfg(target_os = "linux")]
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Address space in use: what the host's own code and allocator have reserved is not the plugin's.
#[cfg(target_os = "linux")]
fn address_space() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmSize:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.map(|n| n << 10).ok_or_else(|| io::Error::other("/proc/self/status has no VmSize"))
}

#[cfg(not(target_os = "linux"))]
fn address_space() -> io::Result<u64> {
    Ok(1 << 30)
}
