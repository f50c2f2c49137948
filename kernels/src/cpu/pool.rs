//! One persistent thread pool: hands the same closure to every thread, and waits for all.
//!
//! Workers spin for a short while after a job (the next one usually comes within microseconds), then park. A run
//! allocates nothing and takes no lock that another thread holds for long. The caller is part 0 and computes too. Work is
//! partitioned statically by (part, parts), so which thread computes what is the same in every run. It never queues work
//! and never steals it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{KernelError, features};

/// How long a thread spins before it parks.
const SPIN: Duration = Duration::from_micros(100);

type Job = dyn Fn(usize, usize) + Sync;

thread_local! {
    /// Set while this thread runs a part: a nested run would wait for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// On its own cache line, so that threads that spin on one do not slow writes to another.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Counts jobs. A worker that sees a new value runs the job.
    epoch: Line<AtomicU32>,
    /// Workers that have not finished the job.
    running: Line<AtomicUsize>,
    /// Workers that are parked, or about to be.
    parked: Line<AtomicUsize>,
    /// Whether the caller is parked, or about to be.
    caller_parked: AtomicBool,
    stop: AtomicBool,
    /// Valid from the increment of `epoch` until `running` is 0 again.
    job: UnsafeCell<Option<*const Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    lock: Mutex<()>,
    start: Condvar,
    done: Condvar,
}

// SAFETY: `job` is written only by the one caller that holds `Pool::turn`, while no worker runs, and it points to a Sync
// closure that outlives the run; everything else is Send and Sync by itself.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

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
        let shared = Arc::new(Shared {
            epoch: Line(AtomicU32::new(0)),
            running: Line(AtomicUsize::new(0)),
            parked: Line(AtomicUsize::new(0)),
            caller_parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            lock: Mutex::new(()),
            start: Condvar::new(),
            done: Condvar::new(),
        });
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
        // SAFETY: only the lifetime is erased. This function does not return, nor unwind, before `running` is 0, and no
        // worker touches the job after that.
        let erased: *const Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), _>(job) };
        // SAFETY: no worker runs: the previous run waited for all, and we hold `turn`.
        unsafe { *shared.job.get() = Some(erased) };
        shared.running.0.store(self.workers.len(), SeqCst);
        shared.epoch.0.fetch_add(1, SeqCst);
        // A worker adds itself to `parked` and then looks at `epoch`; here it is the other way round. So either it sees
        // the new epoch or we see it parked.
        if shared.parked.0.load(SeqCst) > 0 {
            drop(lock(&shared.lock));
            shared.start.notify_all();
        }
        let mine = run_part(|| job(0, self.threads()));
        self.wait();
        let theirs = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Waits until every worker has finished the job.
    fn wait(&self) {
        let shared = &*self.shared;
        if spin_until(|| shared.running.0.load(SeqCst) == 0) {
            return;
        }
        let mut guard = lock(&shared.lock);
        shared.caller_parked.store(true, SeqCst);
        while shared.running.0.load(SeqCst) != 0 {
            guard = shared.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        shared.caller_parked.store(false, SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        drop(lock(&self.shared.lock));
        self.shared.start.notify_all();
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
    loop {
        if !spin_until(|| shared.epoch.0.load(SeqCst) != seen) {
            let mut guard = lock(&shared.lock);
            shared.parked.0.fetch_add(1, SeqCst);
            while shared.epoch.0.load(SeqCst) == seen {
                guard = shared.start.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            shared.parked.0.fetch_sub(1, SeqCst);
        }
        // The caller cannot begin another job before this worker has finished this one: epochs are never skipped.
        seen = seen.wrapping_add(1);
        if shared.stop.load(SeqCst) {
            return;
        }
        // SAFETY: set before the epoch was raised, and not changed until this worker reports.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: the caller keeps the closure alive until all workers report.
            let result = run_part(|| unsafe { (*job)(part, parts) });
            if let Err(payload) = result {
                lock(&shared.panic).get_or_insert(payload);
            }
        }
        if shared.running.0.fetch_sub(1, SeqCst) == 1 && shared.caller_parked.load(SeqCst) {
            drop(lock(&shared.lock));
            shared.done.notify_one();
        }
    }
}

/// Runs one part with `INSIDE` set, and catches its panic.
fn run_part(part: impl FnOnce()) -> Result<(), Box<dyn Any + Send>> {
    INSIDE.set(true);
    let result = catch_unwind(AssertUnwindSafe(part));
    INSIDE.set(false);
    result
}

/// Spins until `ready`, for at most [`SPIN`]. Returns whether it became ready.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..16 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        let since = *since.get_or_insert_with(Instant::now);
        if since.elapsed() > SPIN {
            return ready();
        }
    }
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
