//! One persistent thread pool: hands the same closure to every thread, and waits for all.
//!
//! Workers spin for a short while after a job (the next one usually comes within microseconds), then give way to other
//! threads that want the processor, then park; `handover` is how. A run allocates nothing and takes no lock that another
//! thread holds for long. The caller is part 0 and computes too. Work is
//! partitioned statically by (part, parts), so which thread computes what is the same in every run. It never queues work
//! and never steals it.

mod handover;

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{KernelError, features};
use handover::Handover;

type Job = dyn Fn(usize, usize) + Sync;

/// The closure of a run, whose lifetime is erased: it lives until all workers have reported.
#[derive(Clone, Copy)]
struct JobRef(*const Job);

// SAFETY: it points to a Sync closure, and is used only while `Pool::run` keeps that alive.
unsafe impl Send for JobRef {}

thread_local! {
    /// Set while this thread runs a part: a nested run would wait for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Shared {
    handover: Handover<JobRef>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of threads that run one closure at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a run: callers on several threads take turns.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// Starts `threads - 1` workers; the caller of [`Pool::run`] is the remaining thread. With `pin`, each worker is
    /// bound to one of the processors that this process may use, beginning with the second.
    pub fn new(threads: usize, pin: bool) -> Result<Self, KernelError> {
        if threads == 0 || threads > 4096 {
            let why = "must be between 1 and 4096";
            return Err(KernelError::Option { argument: "threads", got: threads.to_string(), why });
        }
        let shared = Arc::new(Shared { handover: Handover::new(), panic: Mutex::new(None) });
        let cpus = if pin { features::allowed_cpus() } else { Vec::new() };
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1), turn: Mutex::new(()) };
        for part in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = (!cpus.is_empty()).then(|| cpus[part % cpus.len()]);
            // On an error the pool is dropped, which stops the workers that were started.
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{part}"))
                .spawn(move || worker(&shared, part, threads, cpu))
                .map_err(|e| KernelError::Thread { index: part, reason: e.to_string() })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(part, parts)` once for every part in `0..parts`, each on its own thread, and returns when all are
    /// done. With one thread, or from inside a job, it calls `job(0, 1)` here. A panic in any part is raised again here,
    /// after all parts ended.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || INSIDE.get() {
            return job(0, 1);
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. This function does not return, nor unwind, before all workers have
        // reported, and none touches the job after that.
        let erased: *const Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), _>(job) };
        // SAFETY: callers take turns; each worker takes every job until the pool is dropped.
        unsafe { shared.handover.begin(JobRef(erased), self.workers.len()) };
        let mine = run_part(|| job(0, self.threads()));
        shared.handover.wait();
        let theirs = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.handover.stop();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a job, so this cannot fail; if it did, there would be nothing to do.
            let _ = worker.join();
        }
    }
}

/// What each worker thread does until the pool is dropped.
fn worker(shared: &Shared, part: usize, parts: usize, cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        pin_to(cpu);
    }
    let mut seen = 0;
    while let Some(JobRef(job)) = shared.handover.next(&mut seen) {
        // SAFETY: the caller keeps the closure alive until all workers report.
        let result = run_part(|| unsafe { (*job)(part, parts) });
        if let Err(payload) = result {
            lock(&shared.panic).get_or_insert(payload);
        }
        shared.handover.finish();
    }
}

/// Runs one part with `INSIDE` set, and catches its panic.
fn run_part(part: impl FnOnce()) -> Result<(), Box<dyn Any + Send>> {
    INSIDE.set(true);
    let result = catch_unwind(AssertUnwindSafe(part));
    INSIDE.set(false);
    result
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these locks leaves its data half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Binds this thread to one processor. Without effect where the system refuses.
#[cfg(target_os = "linux")]
fn pin_to(cpu: usize) {
    // SAFETY: an all-zero set is valid, `cpu` came from the system, and the call only reads the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin_to(_cpu: usize) {}

/// The part of `0..n` that belongs to `part` of `parts`: contiguous, in order, sizes differ by at most one.
pub fn split(n: usize, part: usize, parts: usize) -> Range<usize> {
    let (each, rest) = (n / parts, n % parts);
    let start = part * each + part.min(rest);
    start..start + each + usize::from(part < rest)
}
