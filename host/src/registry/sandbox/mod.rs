//! What a worker process gives up before it loads a plugin. [`enter`] and [`close`] run in the worker only; [`support`] tells the
//! host what its kernel can do, which it says in its log and in `host doctor`.
//!
//! Every step is one that needs no privileges: limits on resources; landlock, so that only the files that were handed over can
//! be opened; a filter of system calls (`calls`). Either of the last two may be missing or forbidden (old kernels, some
//! containers): the host asks its kernel first, and what it then orders, the worker does or dies.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod libraries;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use plugin_api::Sources;
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

/// Which parts of the sandbox the worker is to set up: those that the host's kernel has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Parts {
    /// Landlock.
    pub files: bool,
    /// The filter of system calls.
    pub calls: bool,
}

/// Open files: the pipe, the plugin and its libraries.
const FILES: u64 = 64;
/// Largest file that a plugin writes into the folder that it was given.
const DERIVED_FILE: u64 = 256 << 20;

/// What this machine's kernel can do for the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSupport {
    /// The version of landlock's interface; `Err`: why it cannot be used.
    pub landlock: Result<u32, String>,
    /// `Err`: why system calls cannot be filtered.
    pub seccomp: Result<(), String>,
}

impl SandboxSupport {
    /// What is missing, and what that means; empty where all is well.
    pub fn missing(&self) -> Vec<String> {
        let landlock = self.landlock.as_ref().err().map(|why| {
            format!(
                "plugins can read what the server's user can read: landlock cannot be used ({why}); it takes Linux 5.13"
            )
        });
        let seccomp = self.seccomp.as_ref().err().map(|why| {
            format!("plugins can start processes and use the network: system calls cannot be filtered ({why})")
        });
        landlock.into_iter().chain(seccomp).collect()
    }
}

/// Asks the kernel, once. The parts are tried on a thread that ends at once, and that alone keeps their rules.
pub fn support() -> &'static SandboxSupport {
    static SUPPORT: OnceLock<SandboxSupport> = OnceLock::new();
    SUPPORT.get_or_init(|| {
        let asked = std::thread::Builder::new().name("sandbox-probe".to_owned()).spawn(probe).map(|t| t.join());
        match asked {
            Ok(Ok(support)) => support,
            _ => SandboxSupport {
                landlock: Err("no thread to ask on".into()),
                seccomp: Err("no thread to ask on".into()),
            },
        }
    })
}

/// Whether a plugin can be kept to the files that it was given.
pub(super) fn confines_files() -> bool {
    support().landlock.is_ok()
}

/// The parts that the worker is to set up.
pub(super) fn parts() -> Parts {
    Parts { files: support().landlock.is_ok(), calls: support().seccomp.is_ok() }
}

#[cfg(target_os = "linux")]
fn probe() -> SandboxSupport {
    SandboxSupport { landlock: files::probe(), seccomp: calls::probe() }
}

#[cfg(not(target_os = "linux"))]
fn probe() -> SandboxSupport {
    let not_here = || format!("{} has none", std::env::consts::OS);
    SandboxSupport { landlock: Err(not_here()), seccomp: Err(not_here()) }
}

/// Dies with the host. `parent` is the host's process id: if it has died already, the worker is somebody else's child.
pub(super) fn die_with_parent(parent: u32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get());
    if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(io::Error::other("the host has gone")) }
}

/// What the worker may open.
#[derive(Debug)]
pub(super) struct Access {
    /// Single files.
    pub files: Vec<PathBuf>,
    /// Folders with all that is in them.
    pub folders: Vec<PathBuf>,
    /// A folder that may be written.
    pub writable: Option<PathBuf>,
}

impl Access {
    /// The plugin with its libraries, and the sources that it was given.
    pub(super) fn new(plugin: &Path, sources: &Sources) -> Access {
        let mut files = vec![plugin.to_owned()];
        #[cfg(target_os = "linux")]
        files.extend(libraries::needed(plugin));
        if let Some(code) = &sources.model_code {
            files.extend(code.files.iter().map(|file| code.dir.join(file)));
        }
        Access { files, folders: sources.transformers.iter().cloned().collect(), writable: sources.cache.clone() }
    }
}

/// Sets limits and gives up files, for good. On the main thread, before there is another: threads inherit it.
pub(super) fn enter(limits: Limits, access: &Access, parts: Parts) -> io::Result<()> {
    let fixed = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    setrlimit(Resource::Core, fixed(0))?; // a crash leaves no file
    // Nor does anything else, unless landlock keeps it to one folder.
    setrlimit(Resource::Fsize, fixed(if parts.files && access.writable.is_some() { DERIVED_FILE } else { 0 }))?;
    setrlimit(Resource::Nofile, fixed(FILES))?;
    // The hard limit kills, one second after the soft one's signal, which a plugin could ignore.
    let cpu = Rlimit { current: Some(limits.cpu_seconds), maximum: Some(limits.cpu_seconds + 1) };
    setrlimit(Resource::Cpu, cpu)?;
    setrlimit(Resource::As, fixed(limits.memory.saturating_add(address_space()?)))?;
    #[cfg(target_os = "linux")]
    {
        rustix::thread::set_no_new_privs(true)?;
        if parts.files {
            files::confine(access).map_err(|e| io::Error::other(format!("landlock: {e}")))?;
        }
    }
    Ok(())
}

/// Gives up system calls, in all threads. On the plugin's thread, which is the last one: no other can be made.
pub(super) fn close(writes: bool, parts: Parts) -> io::Result<()> {
    // Not for root, and not needed where calls are filtered; but better than nothing where they are not.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Nproc, none)?;
    #[cfg(target_os = "linux")]
    if parts.calls {
        calls::filter(writes && parts.files).map_err(|e| io::Error::other(format!("seccomp: {e}")))?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_it_means() {
        let whole = SandboxSupport { landlock: Ok(6), seccomp: Ok(()) };
        assert!(whole.missing().is_empty());
        let none = SandboxSupport { landlock: Err("too old".into()), seccomp: Err("forbidden".into()) };
        let missing = none.missing();
        assert!(missing[0].contains("can read what the server's user can read") && missing[0].contains("(too old)"));
        assert!(missing[1].contains("start processes and use the network") && missing[1].contains("(forbidden)"));
        assert_eq!(missing.len(), 2);
    }

    #[test]
    fn asking_the_kernel_leaves_this_process_free() {
        let support = support();
        assert_eq!(support.landlock.is_ok(), confines_files());
        assert!(std::fs::read_to_string("/proc/self/status").is_ok());
        assert!(std::thread::Builder::new().spawn(|| {}).is_ok_and(|thread| thread.join().is_ok()));
        assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    }
}
