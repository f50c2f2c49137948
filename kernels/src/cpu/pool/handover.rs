//! How a job gets from the caller of a run to the workers, and their reports back: counters to spin on, one lock and two
//! conditions to park on. It starts no threads and runs no jobs, so that loom can try every interleaving of it
//! (`RUSTFLAGS="--cfg loom" cargo test --release -p kernels --lib loom`). Used by [`super::Pool`] only.
//!
//! Who waits spins for a moment, then lets others have its processor in between, then parks. Nothing here allocates.

#[cfg(all(loom, test))]
use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst, fence},
};
use std::sync::PoisonError;
#[cfg(not(all(loom, test)))]
use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst, fence},
};

/// On its own cache line, so that threads that spin on one do not slow writes to another.
#[repr(align(128))]
struct Line<T>(T);

/// Shared by one caller at a time and a fixed number of workers. `J` says what a job is: a pointer, say.
pub(super) struct Handover<J> {
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
    job: Slot<J>,
    lock: Mutex<()>,
    start: Condvar,
    done: Condvar,
}

// SAFETY: `job` is written by `begin` only, whose caller promises that no worker runs, and read by workers between the
// increment of `epoch` and their report; everything else is Sync by itself.
unsafe impl<J: Send> Sync for Handover<J> {}

impl<J: Copy> Handover<J> {
    pub(super) fn new() -> Self {
        Handover {
            epoch: Line(AtomicU32::new(0)),
            running: Line(AtomicUsize::new(0)),
            parked: Line(AtomicUsize::new(0)),
            caller_parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: Slot::new(None),
            lock: Mutex::new(()),
            start: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Caller: hands `job` to all `workers` workers.
    ///
    /// # Safety
    /// No other thread is between `begin` and the end of [`Handover::wait`], and each of the workers takes every job.
    pub(super) unsafe fn begin(&self, job: J, workers: usize) {
        // SAFETY: no worker runs: the previous job was waited for.
        self.job.with_mut(|slot| unsafe { *slot = Some(job) });
        self.running.0.store(workers, SeqCst);
        self.epoch.0.fetch_add(1, SeqCst);
        // A worker adds itself to `parked` and then looks at `epoch`; here it is the other way round. So either it sees
        // the new epoch or we see it parked.
        fence(SeqCst);
        if self.parked.0.load(SeqCst) > 0 {
            drop(lock(&self.lock));
            self.start.notify_all();
        }
    }

    /// Caller: waits until every worker has finished the job.
    pub(super) fn wait(&self) {
        if spin_until(|| self.running.0.load(SeqCst) == 0) {
            return;
        }
        let mut guard = lock(&self.lock);
        self.caller_parked.store(true, SeqCst);
        // As in `begin`, with the last worker.
        fence(SeqCst);
        while self.running.0.load(SeqCst) != 0 {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_parked.store(false, SeqCst);
    }

    /// Worker: the next job, once there is one; `None` at the end. `seen` counts this worker's jobs, from 0.
    pub(super) fn next(&self, seen: &mut u32) -> Option<J> {
        if !spin_until(|| self.epoch.0.load(SeqCst) != *seen) {
            let mut guard = lock(&self.lock);
            self.parked.0.fetch_add(1, SeqCst);
            fence(SeqCst);
            while self.epoch.0.load(SeqCst) == *seen {
                guard = self.start.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.parked.0.fetch_sub(1, SeqCst);
        }
        // The caller cannot begin another job before this worker has finished this one: epochs are never skipped.
        *seen = seen.wrapping_add(1);
        if self.stop.load(SeqCst) {
            return None;
        }
        // SAFETY: set before the epoch was raised, and not changed until this worker reports.
        self.job.with(|slot| unsafe { *slot })
    }

    /// Worker: it has finished the job.
    pub(super) fn finish(&self) {
        if self.running.0.fetch_sub(1, SeqCst) == 1 {
            fence(SeqCst);
            if self.caller_parked.load(SeqCst) {
                drop(lock(&self.lock));
                self.done.notify_one();
            }
        }
    }

    /// Caller, with no job under way: every worker's next [`Handover::next`] is `None`.
    pub(super) fn stop(&self) {
        self.stop.store(true, SeqCst);
        self.epoch.0.fetch_add(1, SeqCst);
        drop(lock(&self.lock));
        self.start.notify_all();
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(not(all(loom, test)))]
mod waiting {
    use std::time::{Duration, Instant};

    /// How long a thread spins with its processor to itself: jobs of one step follow each other faster.
    const EAGER: Duration = Duration::from_micros(20);
    /// How long it goes on, giving way to whoever else wants the processor, before it parks.
    const PATIENT: Duration = Duration::from_micros(100);

    /// Waits until `ready`, for at most [`PATIENT`]. Returns whether it became ready.
    pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
        let mut since = None;
        loop {
            for _ in 0..16 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let spent = since.get_or_insert_with(Instant::now).elapsed();
            if spent > PATIENT {
                return ready();
            }
            if spent > EAGER {
                // Where more threads run than there are processors, the one that is waited for may need this one.
                std::thread::yield_now();
            }
        }
    }

    /// [`std::cell::UnsafeCell`] as loom has it.
    pub(super) struct Slot<J>(std::cell::UnsafeCell<Option<J>>);

    impl<J> Slot<J> {
        pub(super) fn new(job: Option<J>) -> Self {
            Slot(std::cell::UnsafeCell::new(job))
        }

        pub(super) fn with<R>(&self, f: impl FnOnce(*const Option<J>) -> R) -> R {
            f(self.0.get())
        }

        pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut Option<J>) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(all(loom, test))]
mod waiting {
    /// Whether it is spun for long is all the same to what may happen.
    pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
        ready()
    }

    /// Tells loom who reads and who writes.
    pub(super) type Slot<J> = loom::cell::UnsafeCell<Option<J>>;
}

use waiting::{Slot, spin_until};

#[cfg(all(loom, test))]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    /// Every worker adds every job to a cell of its own, which the caller reads after each: every job is run once by each,
    /// what the caller wrote is seen, what workers wrote is seen, nobody waits for ever.
    fn check(workers: usize, jobs: &'static [usize], preemptions: Option<usize>) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            let cells = (0..workers).map(|_| UnsafeCell::new(0)).collect::<Vec<_>>();
            let shared = Arc::new((Handover::new(), cells));
            let threads: Vec<_> = (0..workers)
                .map(|worker| {
                    let shared = Arc::clone(&shared);
                    loom::thread::spawn(move || {
                        let (handover, cells) = &*shared;
                        let mut seen = 0;
                        while let Some(job) = handover.next(&mut seen) {
                            // SAFETY: loom checks that nobody else has it.
                            cells[worker].with_mut(|sum| unsafe { *sum += job });
                            handover.finish();
                        }
                    })
                })
                .collect();
            let (handover, cells) = &*shared;
            let mut sum = 0;
            for &job in jobs {
                // SAFETY: the only caller, and it waits.
                unsafe { handover.begin(job, workers) };
                handover.wait();
                sum += job;
                for cell in cells {
                    // SAFETY: loom checks that nobody writes.
                    cell.with(|got| assert_eq!(unsafe { *got }, sum));
                }
            }
            handover.stop();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_one_worker() {
        check(1, &[5, 70], Some(3));
    }

    #[test]
    fn loom_two_workers() {
        check(2, &[5, 70], Some(2));
    }

    #[test]
    fn loom_stop_without_a_job() {
        check(2, &[], None);
    }
}
