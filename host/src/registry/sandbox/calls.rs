//! The filter of system calls: a list of what code needs that computes and reads files; all else fails.
//!
//! It is a list of the allowed, since kernels grow calls faster than lists of the forbidden. A call that is not on it fails
//! with `EPERM` and does not kill: an interpreter then names the line of the model's code that tried, and a library's harmless
//! question (is this a terminal?) costs nothing. There are no sockets, no processes, no threads, no `ptrace`, no signals to
//! others, no `io_uring`, `bpf`, keys, mounts or namespaces on the list.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter, apply_filter_all_threads,
};

/// Memory, time, reading, the thread's own signals, and its end.
const ALLOWED: &[c_long] = &[
    libc::SYS_mmap, // of files too: the plugin's library is loaded under the filter
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_restart_syscall,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write, // into pipes, and into the folder that may be written
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_ppoll,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same by their older names, which not every processor has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] =
    &[libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Changing files, in the folder that landlock leaves writable.
const WRITING: &[c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_pwrite64,
    libc::SYS_utimensat,
];
#[cfg(target_arch = "x86_64")]
const WRITING_OLDER: &[c_long] =
    &[libc::SYS_mkdir, libc::SYS_rename, libc::SYS_renameat, libc::SYS_unlink, libc::SYS_rmdir];
#[cfg(not(target_arch = "x86_64"))]
const WRITING_OLDER: &[c_long] = &[];

/// Flags of `open` that do more than read.
const WRITES: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;

/// Filters the calls of all threads. `writes`: files may be changed, as far as landlock lets.
pub(super) fn filter(writes: bool) -> Result<(), Error> {
    apply_filter_all_threads(&program(writes)?)
}

/// Whether it can be done, by doing it to this thread.
pub(super) fn probe() -> Result<(), String> {
    program(false).and_then(|program| apply_filter(&program)).map_err(|e| e.to_string())
}

fn program(writes: bool) -> Result<BpfProgram, Error> {
    let always = |calls: &[c_long]| calls.iter().map(|&call| (call, Vec::new())).collect::<Vec<_>>();
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(always(ALLOWED));
    rules.extend(always(OLDER));
    if writes {
        rules.extend(always(WRITING));
        rules.extend(always(WRITING_OLDER));
        rules.insert(libc::SYS_openat, vec![]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![]);
    } else {
        let reads = |argument| rule(&[(argument, Length::Dword, Compare::MaskedEq(WRITES), libc::O_RDONLY as u64)]);
        rules.insert(libc::SYS_openat, vec![reads(2)?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![reads(1)?]);
    }
    // Signals to itself: how a program aborts.
    let me = u64::from(std::process::id());
    for call in [libc::SYS_tgkill, libc::SYS_kill] {
        rules.insert(call, vec![rule(&[(0, Length::Dword, Compare::Eq, me)])?]);
    }
    let fcntl = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL];
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntl)?);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME])?);
    // Only the question, not the setting of limits.
    let (own, no_new) = ((0, Length::Dword, Compare::Eq, 0), (2, Length::Qword, Compare::Eq, 0));
    rules.insert(libc::SYS_prlimit64, vec![rule(&[own, no_new])?]);

    let arch = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()?)
}

/// A rule that all of these hold: the argument's number, its size, and how it compares with a value.
fn rule(conditions: &[(u8, Length, Compare, u64)]) -> Result<SeccompRule, Error> {
    let condition = |(argument, length, compare, value): &(u8, Length, Compare, u64)| {
        SeccompCondition::new(*argument, length.clone(), compare.clone(), *value)
    };
    Ok(SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)?)
}

/// Rules that the argument is one of these.
fn one_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, Error> {
    values
        .iter()
        .map(|&value| rule(&[(argument, Length::Dword, Compare::Eq, u64::from(value.unsigned_abs()))]))
        .collect()
}
